"""Streams from shards: the same batches for any ranks, workers, shards, place and resume, and never wrong bytes."""

from __future__ import annotations

import functools
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import prepared
from torch import Tensor

from repro.data import stream as stream_module
from repro.data.manifest import Manifest, load_manifest
from repro.data.orders import ORDER_NAMES
from repro.data.prefetch import Prefetcher, contiguous, rank_slices
from repro.data.preparing import Job, Part, SetPlan, write_set
from repro.data.reading import read_shards
from repro.data.remote import RemoteStore, link
from repro.data.shards import write_shards
from repro.data.sources import Digits, ImageFolder
from repro.data.stores import MemoryStore, OpenFiles, ShardStore, Store
from repro.data.stream import Dataset, ImageStream, View
from repro.errors import CorruptData, MissingPrerequisite, UsageError

COUNT = 41
BATCH = 12
STEPS = 11  # 132 images: three epochs and a part of one


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Manifest]]:
    """The same 41 images in 1 and in 7 shards."""
    one = prepared(tmp_path_factory.mktemp("one"), COUNT)
    seven = prepared(tmp_path_factory.mktemp("seven"), COUNT, shard_images=6)
    assert [len(one[1].shards), len(seven[1].shards)] == [1, 7]
    return {1: one, 7: seven}


def open_store(kind: str, folder: Path, manifest: Manifest) -> Store:
    if kind == "memory":
        return MemoryStore(*read_shards(folder, manifest))
    if kind == "remote":
        return RemoteStore(f"file://{folder}/", manifest, 4096)
    return ShardStore(folder, manifest)


def trajectory(
    stream: ImageStream, world: int, workers: int, first: int = 0, steps: int = STEPS
) -> list[tuple[Tensor, Tensor]]:
    """Global batches as `world` ranks see them together, each rank a stream of its own."""
    batches = []
    share = BATCH // world
    if workers:
        stream.read_ahead(workers, rank_slices(BATCH, world, 0))
    for step in range(first, first + steps):
        parts = []
        for rank in range(world):
            x, y = stream.batch(step * BATCH + rank * share, share)
            assert len(x) == share, "every rank gets batches of one size for ever"
            assert y is not None
            parts.append((x, y))
        batches.append((torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])))
    stream.read_ahead(0)
    return batches


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


VIEWS = [
    *(View(order=name, window=8) for name in ORDER_NAMES),
    View(xflip=True),
    View(random_flip=True),
    View(whole_batches=BATCH),
]


@functools.cache
def wanted(folder: Path, view: View) -> list[tuple[Tensor, Tensor]]:
    manifest = load_manifest(folder)
    images, labels = read_shards(folder, manifest)
    return trajectory(ImageStream.over(MemoryStore(images, labels), manifest, 5, view), 1, 0)


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"{v.order}-{v.xflip:d}{v.random_flip:d}{v.whole_batches or 0}")
@pytest.mark.parametrize("kind", ["memory", "local", "remote"])
@pytest.mark.parametrize("shards", [1, 7])
def test_batches_do_not_depend_on_how_they_are_read(
    kind: str, shards: int, view: View, sets: dict[int, tuple[Path, Manifest]]
) -> None:
    """1, 2 and 4 ranks; 0, 1 and 3 workers; resumed at the start, inside the first epoch and in a later one."""
    folder, manifest = sets[shards]
    reference = wanted(sets[1][0], view)
    store = open_store(kind, folder, manifest)
    for world in (1, 2, 4):
        for workers in (0, 1, 3):
            for first in (0, 2, 7):
                stream = ImageStream.over(store, manifest, 5, view)
                assert equal(trajectory(stream, world, workers, first, STEPS - first), reference[first:])


def test_the_views_differ(sets: dict[int, tuple[Path, Manifest]]) -> None:
    first = [wanted(sets[1][0], view)[0][0] for view in (*VIEWS[: len(ORDER_NAMES)], VIEWS[-3], VIEWS[-2])]
    for number, images in enumerate(first):
        assert not any(torch.equal(images, other) for other in first[:number])


def test_random_flips_mirror_half_of_the_images(sets: dict[int, tuple[Path, Manifest]]) -> None:
    folder, manifest = sets[1]
    store = ShardStore(folder, manifest)
    plain = ImageStream.over(store, manifest, 5, View()).batch(0, 82)[0]
    flipped = ImageStream.over(store, manifest, 5, View(random_flip=True)).batch(0, 82)[0]
    mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)])
    assert 20 < int(mirrored.sum()) < 62
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(-1))


def test_dataset_reads_large_sets_by_index_and_small_ones_at_once(
    sets: dict[int, tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = sets[7]
    dataset = Dataset(ImageFolder(COUNT, "center-crop", 3, "toy"), 8, 3, label_dim=3)
    small = dataset.open(folder.parent, 5)
    monkeypatch.setattr(stream_module, "IN_MEMORY_BYTES", 0)
    large = dataset.open(folder.parent, 5, workers=2)
    assert isinstance(small._store, MemoryStore) and isinstance(large._store, ShardStore)
    for position in (0, 30, 60):
        assert torch.equal(small.batch(position, 30)[0], large.batch(position, 30)[0])
    assert torch.equal(small.all_images(), large.all_images())
    assert torch.equal(torch.cat(list(large.image_batches(7))), small.all_images())
    assert torch.equal(small.all_labels(), large.all_labels())
    assert small.manifest_sha256 == large.manifest_sha256 == load_manifest(folder).sha256


def test_shards_without_indices_are_indexed_in_memory(tmp_path: Path) -> None:
    """Those of `write_shards`, and of other tools: verified as a whole when they are opened."""
    images, labels = Digits().images(8, 1)
    manifest = write_shards(images, labels, tmp_path / "s", "digits", 10)
    store = ShardStore(tmp_path / "s", manifest)
    index = np.array([3593, 0, 1000, 999, 250, 3593])
    values, classes = store.take(index)
    assert np.array_equal(values, images[index]) and np.array_equal(classes, labels[index])
    assert np.array_equal(store.labels(), labels)
    path = tmp_path / "s" / manifest.shards[1].name
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=r"digits-00001\.tar"):
        ShardStore(tmp_path / "s", manifest)


def damaged(tmp: Path, change: Callable[[Path, Manifest], None]) -> tuple[Path, Manifest]:
    folder, manifest = prepared(tmp, COUNT, shard_images=6)
    change(folder, manifest)
    return folder, manifest


def flip_byte(name: str, offset: int) -> Callable[[Path, Manifest], None]:
    def change(folder: Path, manifest: Manifest) -> None:
        content = bytearray((folder / name).read_bytes())
        content[offset] ^= 4
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_at_a_flipped_byte_and_names_it(workers: int, tmp_path: Path) -> None:
    folder, manifest = damaged(tmp_path, flip_byte("toy-00003.tar", 512 + 128 + 400))
    stream = ImageStream.over(ShardStore(folder, manifest), manifest, 0, View())
    stream.read_ahead(workers)
    with pytest.raises(CorruptData, match=r"toy-00003\.tar: member toy-00003-000\.x\.npy, image \d, is damaged"):
        for step in range(4):
            stream.batch(step * 12, 12)
    stream.read_ahead(0)


def test_bytes_that_change_while_training_runs_are_noticed(tmp_path: Path) -> None:
    """Whatever was verified at the start: an image is compared each time it is read."""
    folder, manifest = prepared(tmp_path, COUNT, shard_images=6)
    stream = ImageStream.over(ShardStore(folder, manifest), manifest, 0, View())
    stream.batch(0, 2 * COUNT)
    with open(folder / "toy-00002.tar", "r+b") as shard:
        shard.seek(1000)
        shard.write(b"\xff\x00\xff")
    with pytest.raises(CorruptData, match=r"toy-00002\.tar"):
        stream.batch(0, COUNT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_byte("toy-00001.index.npy", 140), r"toy-00001\.index\.npy: corrupt index"),
        (lambda folder, manifest: (folder / "toy-00001.index.npy").unlink(), r"toy-00001\.index\.npy: index cannot be"),
        (lambda folder, manifest: (folder / "toy-00001.tar").unlink(), r"toy-00001\.tar: shard cannot be read"),
        (lambda folder, manifest: (folder / "toy-00001.tar").write_bytes(b""), r"toy-00001\.tar: corrupt shard: 0 "),
    ],
)
def test_missing_and_cut_files_are_noticed_at_once(
    change: Callable[[Path, Manifest], None], message: str, tmp_path: Path
) -> None:
    folder, manifest = damaged(tmp_path, change)
    with pytest.raises(CorruptData, match=message):
        ShardStore(folder, manifest)


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Two epochs of 25 MB in shards of 1 MB: Python and NumPy never hold more than a few batches."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 3, 64, 64), dtype=np.uint8)
    jobs = [
        Job(n, 80, functools.partial(Part, images[80 * n : 80 * n + 80], np.zeros(80, np.int64))) for n in range(25)
    ]
    manifest = write_set(SetPlan("big", 0, 64, 3, {}, jobs, 0), tmp_path / "big")
    del images, jobs
    stream = ImageStream.over(ShardStore(tmp_path / "big", manifest), manifest, 0, View(labelled=False))
    stream.batch(0, 64)
    tracemalloc.start()
    for step in range(62):
        stream.batch(step * 64, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 64 * 3 * 64 * 64, f"{peak} bytes"


def test_open_files_are_few_and_shared(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(b"x")
    files = OpenFiles(2)
    held = files.get(paths[0])
    assert files.get(paths[0]) is held
    for path in paths[1:]:
        files.get(path)
    assert len(files._files) == 2
    import os

    assert os.pread(held.descriptor, 1, 0) == b"x", "a file in use stays open"


def test_rank_slices_follow_a_rank_through_micro_batches() -> None:
    follow = rank_slices(56, 2, 1, 16)
    request, seen = (28, 16), []
    for _ in range(4):
        seen.append(request)
        request = follow(*request)
    assert seen == [(28, 16), (44, 12), (84, 16), (100, 12)]
    assert rank_slices(8)(0, 8) == (8, 8) and contiguous(3, 4) == (7, 4)
    with pytest.raises(ValueError, match="cannot share"):
        rank_slices(10, 4)


def test_reading_ahead_computes_each_batch_once_and_survives_wrong_guesses() -> None:
    computed: list[tuple[int, int]] = []
    lock = threading.Lock()

    def compute(position: int, count: int) -> tuple[Tensor, None]:
        with lock:
            computed.append((position, count))
        return torch.arange(position, position + count), None

    ahead = Prefetcher(compute, 2, contiguous)
    for position in range(0, 40, 4):
        assert ahead.get(position, 4)[0].tolist() == list(range(position, position + 4))
    assert len(computed) == len(set(computed))
    for position, count in ((7, 3), (1000, 2), (0, 4)):
        assert ahead.get(position, count)[0].tolist() == list(range(position, position + count))
    ahead.close()


@pytest.mark.parametrize("kind", ["file://{}", "pipe:cat {}/", "memory"])
def test_remote_shards_give_the_batches_of_local_ones(
    kind: str, tmp_path: Path, sets: dict[int, tuple[Path, Manifest]]
) -> None:
    folder, manifest = sets[7]
    place = kind.format(folder)
    if kind == "memory":  # any filesystem of fsspec
        import fsspec

        for path in folder.iterdir():
            fsspec.filesystem("memory").pipe(f"/toy/{path.name}", path.read_bytes())
        place = "memory://toy"
    link(place, tmp_path / "toy-8x3")
    source = ImageFolder(COUNT, "center-crop", 3, "toy")
    far = Dataset(source, 8, 3, label_dim=3, order="window", window=8).open(tmp_path, 5, workers=3)
    near = Dataset(source, 8, 3, label_dim=3, order="window", window=8).open(folder.parent, 5)
    assert equal(trajectory(far, 2, 3), trajectory(near, 1, 0))
    assert far.manifest_sha256 == near.manifest_sha256 == manifest.sha256
    with pytest.raises(UsageError, match=r"Dataset\.order = 'window'"):
        Dataset(source, 8, 3).open(tmp_path, 5)


def test_remote_shards_are_fetched_about_once_an_epoch(
    sets: dict[int, tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repro.data import remote

    folder, manifest = sets[7]
    fetched: list[str] = []
    fetch = remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda place, name: (fetched.append(name), fetch(place, name))[1])
    store = RemoteStore(f"file://{folder}/", manifest, window=6)
    stream = ImageStream.over(store, manifest, 0, View(order="window", window=6))
    for position in range(0, COUNT - 5, 6):
        stream.batch(position, 6)
    assert len(fetched) == 7 and len(store._shards) <= 6


def test_remote_shards_are_checked_before_they_are_used(tmp_path: Path) -> None:
    folder, manifest = prepared(tmp_path, COUNT, shard_images=6)
    link(f"file://{folder}", tmp_path / "far" / "toy-8x3")
    flip_byte("toy-00004.tar", 1900)(folder, manifest)
    source = ImageFolder(COUNT, "center-crop", 3, "toy")
    stream = Dataset(source, 8, 3, order="window", window=8).open(tmp_path / "far", 0)
    with pytest.raises(CorruptData, match=r"toy-00004\.tar: corrupt shard: sha256"):
        stream.batch(0, COUNT)
    (folder / "toy-00004.tar").unlink()
    with pytest.raises(MissingPrerequisite, match=r"toy-00004\.tar: cannot be read"):
        stream.batch(0, COUNT)
    (folder / "toy-00004.tar").write_bytes(b"short")
    with pytest.raises(CorruptData, match="5 bytes"):
        stream.batch(0, COUNT)
    with pytest.raises(MissingPrerequisite, match=r"manifest\.json: cannot be read"):
        link(f"file://{tmp_path}/nowhere", tmp_path / "x")
    with pytest.raises(UsageError, match="holds shards of its own"):
        link(f"file://{folder}", folder)


def test_new_options_cost_nobody_a_hash() -> None:
    """A Dataset that uses none of them is written as before."""
    import repro.experiment  # noqa: F401  registers the classes
    from repro.config import Composition, canonical

    tree = Composition((), ["Dataset.source = @Digits", "Dataset.resolution = 8"]).root("Dataset")
    assert set(canonical(tree)["args"]) == {"source", "resolution", "channels", "label_dim", "xflip"}
    other = Composition((), ["Dataset.source = @Digits", "Dataset.resolution = 8", "Dataset.order = 'edm2'"])
    assert canonical(other.root("Dataset"))["args"]["order"] == "edm2"


def test_latents_are_not_mirrored_by_a_dataset() -> None:
    from repro.data.sources import Latents

    with pytest.raises(UsageError, match="mirrored when they are prepared"):
        Dataset(Latents("imagenet-dhariwal", "edm2", 512), 64, 8, xflip=True)

"""Streams: what is seen at a position depends on (seed, position) and on nothing else."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.data.shards import Manifest, Shard, load_manifest, write_shards
from repro.data.sources import FFHQ, Cifar10, Digits
from repro.data.stream import Dataset, ImageStream, epoch_order, read_shards
from repro.errors import CorruptData, MissingPrerequisite, UsageError

MANIFEST = Manifest("toy", 7, 3, (3, 2, 2), 2, 1, {}, (Shard("toy.tar", 0, "", 7),))


def toy(seed: int, xflip: bool = False, labelled: bool = True) -> ImageStream:
    """Seven images, each of a value of its own, darker on the left than on the right."""
    images = (torch.arange(7, dtype=torch.uint8) * 2)[:, None, None, None] + torch.tensor([[0, 1]], dtype=torch.uint8)
    return ImageStream(images.expand(7, 1, 2, 2).clone(), torch.arange(7) % 3, MANIFEST, seed, xflip, labelled)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Dataset(Digits(), 8, 1).open(folder, seed=0)
    return folder


@given(seed=st.integers(0, 2**62), size=st.integers(1, 400), epoch=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_every_epoch_is_a_permutation(seed: int, size: int, epoch: int) -> None:
    assert np.array_equal(np.sort(epoch_order(size, seed, epoch)), np.arange(size))


def test_epoch_order_is_a_known_function_of_seed_and_epoch() -> None:
    """Fixed for ever: a run that is resumed with another version must see the same images."""
    assert epoch_order(10, 0, 0).tolist() == [0, 6, 2, 5, 4, 1, 8, 7, 9, 3]
    assert epoch_order(10, 0, 1).tolist() == [0, 7, 6, 1, 5, 8, 2, 3, 4, 9]
    assert epoch_order(10, 1, 0).tolist() == [4, 1, 2, 8, 0, 3, 5, 9, 7, 6]


def test_orders_are_spread_evenly() -> None:
    """Of 2,000 epochs of 5 images each image comes first about 400 times (std 17.9; 5 std allowed)."""
    first = np.bincount([epoch_order(5, 3, epoch)[0] for epoch in range(2000)], minlength=5)
    assert np.abs(first - 400).max() < 5 * 17.9


@given(
    seed=st.integers(0, 1000),
    xflip=st.booleans(),
    start=st.integers(0, 60),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_slices_of_a_trajectory_are_consistent(seed: int, xflip: bool, start: int, counts: list[int]) -> None:
    whole_x, whole_y = toy(seed, xflip).batch(start, sum(counts))
    stream, position, pieces = toy(seed, xflip), start, []
    for count in counts:
        pieces.append(stream.batch(position, count))
        position += count
    assert whole_y is not None
    assert torch.equal(whole_x, torch.cat([x for x, _ in pieces]))
    assert torch.equal(whole_y, torch.cat([y for _, y in pieces if y is not None]))


def test_positions_do_not_depend_on_what_was_read_before() -> None:
    stream = toy(5)
    for position in (700, 3, 70, 0, 699):
        assert torch.equal(stream.batch(position, 9)[0], toy(5).batch(position, 9)[0])


def test_each_image_once_an_epoch_with_its_own_label() -> None:
    stream = toy(1)
    assert stream.size == 7
    orders = set()
    for epoch in range(20):
        images, labels = stream.batch(7 * epoch, 7)
        number = images[:, 0, 0, 0] // 2
        assert sorted(number.tolist()) == list(range(7))
        assert labels is not None and labels.dtype == torch.int64 and torch.equal(labels, number.long() % 3)
        orders.add(tuple(number.tolist()))
    assert len(orders) > 15


def test_xflip_doubles_the_set_with_mirror_images() -> None:
    stream = toy(1, xflip=True)
    assert stream.size == 14
    images, labels = stream.batch(0, 14)
    seen = sorted((int(image[0, 0, 0]), int(image[0, 0, 1])) for image in images)
    assert seen == sorted([(2 * n, 2 * n + 1) for n in range(7)] + [(2 * n + 1, 2 * n) for n in range(7)])
    assert labels is not None and torch.equal(labels, (images.amin(dim=(1, 2, 3)) // 2).long() % 3)
    index = torch.from_numpy(stream.indices(0, 14))
    assert torch.equal(images[:, 0, 0, 0] > images[:, 0, 0, 1], index >= 7)
    assert torch.equal(stream.all_images(), toy(1).all_images()), "the reference is never flipped"


def test_batches_are_copies() -> None:
    stream = toy(0, xflip=True)
    before = stream.all_images().clone()
    stream.batch(0, 14)[0].zero_()
    assert torch.equal(stream.all_images(), before)


def test_an_unconditional_stream_gives_no_labels() -> None:
    stream = toy(0, labelled=False)
    assert stream.batch(0, 3)[1] is None and stream.all_labels().tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_negative_positions_are_refused() -> None:
    for position, count in ((-1, 3), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            toy(0).batch(position, count)
    assert toy(0).batch(5, 0)[0].shape == (0, 1, 2, 2)


def test_open_prepares_the_digits_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: int) -> None:
        raise AssertionError("prepared again")

    source = Digits()
    monkeypatch.setattr(source, "images", refused)
    stream = Dataset(source, 8, 1, label_dim=10).open(data_dir, seed=3)
    images, labels = Digits().images(8, 1)
    assert torch.equal(stream.all_images(), torch.from_numpy(images))
    assert torch.equal(stream.all_labels(), torch.from_numpy(labels))
    assert stream.manifest_sha256 == load_manifest(data_dir / "digits-8x1").sha256
    x, y = stream.batch(3590, 8)
    assert x.shape == (8, 1, 8, 8) and x.dtype == torch.uint8 and y is not None and y.shape == (8,)


@pytest.mark.parametrize("rank", [0, 3])
def test_every_rank_reads_the_whole_set(rank: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset deals shards by WORLD_SIZE and RANK; the position in the trajectory alone may decide here."""
    wanted = Dataset(Digits(), 8, 1).open(data_dir, seed=0).batch(100, 50)[0]
    for name, value in {"WORLD_SIZE": 4, "RANK": rank, "WORKER": 1, "NUM_WORKERS": 2}.items():
        monkeypatch.setenv(name, str(value))
    stream = Dataset(Digits(), 8, 1).open(data_dir, seed=0)
    assert stream.size == 3594 and torch.equal(stream.batch(100, 50)[0], wanted)


def test_folders_whose_names_webdataset_would_expand(tmp_path: Path) -> None:
    folder = tmp_path / "a{0..1} pipe:"
    assert Dataset(Digits(), 8, 1).open(folder, seed=0).size == 3594


def test_label_dim_must_be_the_number_of_classes(data_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"label_dim 7 .* 10 classes of digits"):
        Dataset(Digits(), 8, 1, label_dim=7).open(data_dir, seed=0)
    with pytest.raises(UsageError, match=r"label_dim 2 .* 0 classes of ffhq"):
        Dataset(FFHQ(), 64, label_dim=2).open(data_dir, seed=0)


def test_a_set_that_was_not_prepared_is_a_missing_prerequisite(tmp_path: Path) -> None:
    dataset = Dataset(Cifar10(), 32, 3, label_dim=10)
    assert len(dataset.missing(tmp_path)) == 1 and Dataset(Digits(), 8).missing(tmp_path) == []
    with pytest.raises(MissingPrerequisite, match="cifar10") as caught:
        dataset.open(tmp_path, seed=0)
    assert str(tmp_path / "cifar10-32x3") in str(caught.value)


def test_prepared_shards_of_an_external_set_are_used_and_counted(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20) % 10
    write_shards(images, labels, tmp_path / "cifar10-32x3", "cifar10", num_classes=10)
    stream = Dataset(Cifar10(count=20), 32, 3, label_dim=10).open(tmp_path, seed=0)
    assert torch.equal(stream.all_images(), torch.from_numpy(images))
    with pytest.raises(CorruptData, match="count is 20, 50000 expected"):
        Dataset(Cifar10(), 32, 3).open(tmp_path, seed=0)


def test_shards_of_another_resolution_under_the_right_name(tmp_path: Path) -> None:
    images = np.zeros((20, 3, 16, 16), dtype=np.uint8)
    write_shards(images, np.arange(20) % 10, tmp_path / "cifar10-32x3", "cifar10", num_classes=10)
    with pytest.raises(CorruptData, match="resolution is 16, 32 expected"):
        Dataset(Cifar10(count=20), 32, 3).open(tmp_path, seed=0)


@pytest.mark.parametrize("position", [0, 700, 5000, -2000])
def test_one_wrong_byte_stops_training(position: int, tmp_path: Path) -> None:
    Dataset(Digits(), 8, 1).open(tmp_path, seed=0)
    path = tmp_path / "digits-8x1" / "digits-00002.tar"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=r"digits-00002\.tar"):
        Dataset(Digits(), 8, 1).open(tmp_path, seed=0)


@pytest.mark.parametrize("size", [0, 512, 10240, 30000])
def test_a_cut_shard_stops_training(size: int, tmp_path: Path) -> None:
    Dataset(Digits(), 8, 1).open(tmp_path, seed=0)
    path = tmp_path / "digits-8x1" / "digits-00000.tar"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptData, match=r"digits-00000\.tar"):
        Dataset(Digits(), 8, 1).open(tmp_path, seed=0)


def npy(array: npt.NDArray[Any], allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


X = npy(np.zeros((4, 1, 8, 8), np.uint8))
Y = npy(np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"x.npy": npy(np.array([None] * 4), allow_pickle=True), "y.npy": Y}, "unreadable"),
        ({"x.npy": X}, "unreadable"),
        ({"x.npy": X[:-1], "y.npy": Y}, "unreadable"),
        ({"x.npy": npy(np.zeros((4, 1, 8, 8), np.float32)), "y.npy": Y}, "float32"),
        ({"x.npy": npy(np.zeros((4, 3, 8, 8), np.uint8)), "y.npy": Y}, r"\(4, 3, 8, 8\)"),
        ({"x.npy": X, "y.npy": npy(np.array([0, 1, 0]))}, r"\(3,\)"),
        ({"x.npy": X, "y.npy": npy(np.zeros(4))}, "float64"),
        ({"x.npy": npy(np.zeros((2, 1, 8, 8), np.uint8)), "y.npy": npy(np.array([0, 1]))}, "2 images, 4"),
        ({"x.npy": X, "y.npy": npy(np.array([0, 1, 1, 1]))}, "class counts"),
        ({"x.npy": X, "y.npy": npy(np.array([0, 1, 0, 9]))}, "class counts"),
    ],
)
def test_shards_that_match_their_digest_but_not_the_manifest(
    record: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    """Made by other tools: right sha256, wrong content. Pickles are never opened."""
    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, mtime=0) as writer:
        writer.write({"__key__": "a", **record})
    content = buffer.getvalue()
    (tmp_path / "odd.tar").write_bytes(content)
    shard = Shard("odd.tar", len(content), hashlib.sha256(content).hexdigest(), 4)
    with pytest.raises(CorruptData, match=message):
        read_shards(tmp_path, Manifest("odd", 4, 2, (2, 2), 8, 1, {}, (shard,)))


def test_a_good_record_of_another_tool_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False) as writer:
        writer.write({"__key__": "a", "x.npy": X, "y.npy": Y})
    content = buffer.getvalue()
    (tmp_path / "good.tar").write_bytes(content)
    shard = Shard("good.tar", len(content), hashlib.sha256(content).hexdigest(), 4)
    images, labels = read_shards(tmp_path, Manifest("good", 4, 2, (2, 2), 8, 1, {}, (shard,)))
    assert images.shape == (4, 1, 8, 8) and labels.tolist() == [0, 1, 0, 1]

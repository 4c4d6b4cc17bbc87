"""Shards: reproducible bytes, whole folders or none, and nothing believed that was not checked."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds

from repro.data.shards import Manifest, load_manifest, prepare, verify_shard, write_shards
from repro.data.sources import Digits
from repro.errors import CorruptData, MissingPrerequisite, UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits-8x1"
    prepare(Digits(), 8, 1, folder)
    return folder


def test_manifest_describes_the_folder(digits: Path) -> None:
    manifest = load_manifest(digits)
    assert (manifest.name, manifest.count, manifest.num_classes) == ("digits", 3594, 10)
    assert (manifest.resolution, manifest.channels) == (8, 1)
    assert manifest.class_counts == tuple(2 * n for n in (178, 182, 177, 183, 181, 182, 181, 179, 174, 180))
    assert [shard.count for shard in manifest.shards] == [1000, 1000, 1000, 594]
    assert {path.name for path in digits.iterdir()} == {"manifest.json", *(s.name for s in manifest.shards)}
    assert all((digits / shard.name).stat().st_size == shard.bytes for shard in manifest.shards)


def test_shards_are_ordinary_webdataset_chunks(digits: Path) -> None:
    urls = [str(digits / shard.name) for shard in load_manifest(digits).shards]
    records = list(wds.WebDataset(urls, shardshuffle=False, nodesplitter=wds.split_by_node).decode())
    assert [len(record["y.npy"]) for record in records] == [250] * 14 + [94]
    images, labels = Digits().images(8, 1)
    assert np.array_equal(np.concatenate([record["x.npy"] for record in records]), images)
    assert np.array_equal(np.concatenate([record["y.npy"] for record in records]), labels)


def test_equal_preparations_give_equal_bytes(digits: Path, tmp_path: Path) -> None:
    again = prepare(Digits(), 8, 1, tmp_path / "deeper" / "digits-8x1")
    assert again.sha256 == load_manifest(digits).sha256
    for path in digits.iterdir():
        assert path.read_bytes() == (tmp_path / "deeper" / "digits-8x1" / path.name).read_bytes()


def test_digest_of_the_prepared_digits_is_known(digits: Path) -> None:
    """Every record of every cell names this digest: if it moves, all of them are of other data."""
    assert load_manifest(digits).sha256 == "708bc4413b73063f49dd555244a97164a26f039eea7fe44ae9c4bdbba893b280"


@pytest.mark.parametrize(
    "change", [{"count": 3595}, {"resolution": 16}, {"name": "other"}, {"options": {}}, {"shards": ()}]
)
def test_manifest_digest_covers_every_field(digits: Path, change: dict[str, Any]) -> None:
    manifest = load_manifest(digits)
    assert dataclasses.replace(manifest, **change).sha256 != manifest.sha256


def test_preparing_again_touches_nothing(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.iterdir()}
    prepare(Digits(), 8, 1, digits)
    assert {path: path.stat().st_mtime_ns for path in digits.iterdir()} == before


def test_a_folder_of_something_else_is_refused(digits: Path) -> None:
    with pytest.raises(CorruptData, match="resolution is 8, 16 expected"):
        prepare(Digits(), 16, 1, digits)
    with pytest.raises(CorruptData, match="mirrored is True, False expected"):
        prepare(Digits(count=1797, mirrored=False), 8, 1, digits)


def _prepare_in_step(barrier: Any, folder: str, queue: Any) -> None:
    source = Digits()
    images = source.images(8, 1)
    source.images = lambda resolution, channels: (barrier.wait(timeout=60), images)[1]  # type: ignore[method-assign]
    queue.put(prepare(source, 8, 1, folder).sha256)


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    folder = tmp_path / "digits-8x1"
    workers = [context.Process(target=_prepare_in_step, args=(barrier, str(folder), queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    digests = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert digests == {load_manifest(folder).sha256}
    assert os.listdir(tmp_path) == ["digits-8x1"]


def _fails_at(number: int, code: int) -> Callable[[int], None]:
    calls = iter(range(number))

    def fsync(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("files_that_fit", [0, 2, 4, 5])
def test_a_full_disk_leaves_nothing(files_that_fit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0..4 of the five files fit, or all do and the folder itself cannot be synced."""
    monkeypatch.setattr(os, "fsync", _fails_at(files_that_fit, errno.ENOSPC))
    with pytest.raises(UsageError, match="the disk is full"):
        prepare(Digits(), 8, 1, tmp_path / "digits-8x1")
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    assert prepare(Digits(), 8, 1, tmp_path / "digits-8x1").count == 3594


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(Digits(), 8, 1, tmp_path / "digits-8x1")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot prepare .*file"):
        prepare(Digits(), 8, 1, tmp_path / "file" / "digits-8x1")


def _small(folder: Path) -> Manifest:
    images = np.arange(30 * 3 * 4 * 4, dtype=np.uint32).astype(np.uint8).reshape(30, 3, 4, 4)
    return write_shards(images, np.arange(30) % 3, folder, "small", num_classes=3)


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path) -> None:
    shard = _small(tmp_path / "s").shards[0]
    path = tmp_path / "s" / shard.name
    content = bytearray(path.read_bytes())
    assert verify_shard(tmp_path / "s", shard) == content
    if damage == "remove":
        path.unlink()
    else:
        content[700] ^= 1
        new = {"flip": content, "cut": content[:-512], "grow": content + bytes(512)}[damage]
        path.write_bytes(new)
    with pytest.raises(CorruptData, match=shard.name):
        verify_shard(tmp_path / "s", shard)


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return edited


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        _edit(lambda v: v.pop("count")),
        _edit(lambda v: v.update(count=31)),
        _edit(lambda v: v.update(count="30")),
        _edit(lambda v: v.update(schema_version=2)),
        _edit(lambda v: v.update(extra=1)),
        _edit(lambda v: v.update(class_counts=[10, 10, 9])),
        _edit(lambda v: v.update(class_counts=[15, 15])),
        _edit(lambda v: v.update(shards=None)),
        _edit(lambda v: v["shards"][0].update(name="../small-00000.tar")),
        _edit(lambda v: v["shards"][0].pop("sha256")),
        _edit(lambda v: v["shards"][0].update(sha256=1)),
        _edit(lambda v: v["shards"][0].update(bytes=-1)),
        _edit(lambda v: v.update(options=[])),
    ],
)
def test_a_damaged_manifest_is_named(damage: Callable[[str], str], tmp_path: Path) -> None:
    _small(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptData, match=r"manifest\.json"):
        load_manifest(tmp_path / "s")


def test_a_folder_without_manifest_is_incomplete_and_no_folder_is_missing(tmp_path: Path) -> None:
    _small(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(CorruptData, match=r"no manifest\.json"):
        load_manifest(tmp_path / "s")
    with pytest.raises(MissingPrerequisite, match="nowhere"):
        load_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int64)),
        (np.zeros((4, 3, 8, 6), np.uint8), np.zeros(4, np.int64)),
        (np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64)),
        (np.zeros((4, 3, 8, 8), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((4, 3, 8, 8), np.uint8), np.full(4, 2)),
        (np.zeros((4, 3, 8, 8), np.uint8), np.full(4, -1)),
    ],
)
def test_arrays_of_another_kind_are_refused(images: Any, labels: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wrong"):
        write_shards(images, labels, tmp_path / "s", "wrong", num_classes=2)
    assert os.listdir(tmp_path) == []


def test_unlabelled_sets_have_no_classes(tmp_path: Path) -> None:
    manifest = write_shards(np.zeros((4, 1, 8, 8), np.uint8), np.arange(4), tmp_path / "s", "plain")
    assert manifest.num_classes == 0 and manifest.class_counts == ()
    record = next(iter(wds.WebDataset(str(tmp_path / "s" / manifest.shards[0].name), shardshuffle=False)))
    assert np.load(io.BytesIO(record["y.npy"]), allow_pickle=False).tolist() == [0, 0, 0, 0]

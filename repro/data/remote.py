"""Shards that lie elsewhere: read one after the other through webdataset, each checked before it is decoded.

A folder whose `remote.txt` holds a place (`https://host/path/`, `s3://bucket/path/`, `pipe:ssh host cat /path/`) and
whose `manifest.json` says what lies there is a remote set: the manifest is local and pins every byte.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, parse_manifest, write_manifest
from repro.data.orders import Indices
from repro.data.reading import decode_shard
from repro.data.shards import check_shard
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.files import make_folder, write_atomic

PLACE_NAME = "remote.txt"


def location(folder: Path) -> str | None:
    """Where a folder's shards lie, or None if they lie in it."""
    path = folder / PLACE_NAME
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def is_remote(place: str) -> bool:
    """Whether a source is a URL or a pipe, not a path."""
    return "://" in place or place.startswith("pipe:")


def fetch(place: str, name: str) -> bytes:
    """One file below a place: any URL that fsspec knows, or `pipe:COMMAND` with the name appended.

    Raises:
        MissingPrerequisite: it cannot be reached, or a library for that kind of URL is not installed.
    """
    import fsspec  # heavy
    import webdataset as wds

    url = place + name
    try:
        with wds.gopen(url, "rb") if place.startswith("pipe:") else fsspec.open(url, "rb") as stream:
            content = stream.read()
    except Exception as error:  # every filesystem has its own
        raise MissingPrerequisite(f"{url}: cannot be read ({type(error).__name__}: {error})") from error
    return bytes(content)


def fetch_manifest(place: str) -> Manifest:
    """The manifest of the shards at a place.

    Raises:
        MissingPrerequisite: there is none. CorruptData: it is no manifest.
    """
    return parse_manifest(fetch(_as_prefix(place), MANIFEST_NAME), f"{place}: {MANIFEST_NAME}")


def link(place: str, folder: Path) -> Manifest:
    """Make `folder` stand for the shards at a place: keep their manifest and where they are.

    Raises: as `fetch_manifest`; UsageError where the folder holds shards of its own.
    """
    if (folder / MANIFEST_NAME).is_file() and location(folder) is None:
        raise UsageError(f"{folder}: holds shards of its own; remove it first")
    manifest = fetch_manifest(place)
    make_folder(folder)
    write_manifest(folder, manifest)
    write_atomic(folder / PLACE_NAME, f"{_as_prefix(place)}\n".encode())
    return load_manifest(folder)


def _as_prefix(place: str) -> str:
    """What a file's name is appended to: a URL ends with a slash, a pipe as it was given."""
    return place if place.endswith("/") or place.startswith("pipe:") else f"{place}/"


def load_shard(place: str, shard: Shard, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Fetch one shard, compare it with the manifest, decode it: images (n, C, R, R) and labels (n,).

    Raises:
        MissingPrerequisite: it cannot be fetched. CorruptData: it is not what the manifest says.
    """
    where = place + shard.name
    content = fetch(place, shard.name)
    if len(content) != shard.bytes:
        raise CorruptData(f"{where}: corrupt shard: {len(content)} bytes, {shard.bytes} in the manifest")
    check_shard(content, shard, where)
    images, labels = decode_shard(content, shard, manifest, where)
    return torch.from_numpy(images), torch.from_numpy(labels)


class RemoteStore:
    """Shards elsewhere. A few decoded ones are kept, enough for the windows that are being read.

    Args:
        place: what a shard's name is appended to.
        manifest: what they must be.
        window: images of a window of the order; decides how many shards are kept.
    """

    def __init__(self, place: str, manifest: Manifest, window: int) -> None:
        self.place = place
        self.manifest = manifest
        self.count = manifest.count
        self._starts = np.cumsum([0, *(shard.count for shard in manifest.shards)])
        self._kept = 2 * (window * len(manifest.shards) // manifest.count + 2)
        self._shards: OrderedDict[int, Future[tuple[Tensor, Tensor]]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, index: Indices) -> tuple[Tensor, Tensor]:
        form = self.manifest.form
        values = torch.from_numpy(np.empty((len(index), *form.shape), dtype=form.dtype))
        labels = torch.empty(len(index), dtype=torch.int64)
        shards = np.searchsorted(self._starts, index, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = torch.from_numpy(np.flatnonzero(shards == shard))
            numbers = torch.from_numpy(index[shards == shard] - self._starts[shard])
            images, classes = self._shard(shard)
            values[places], labels[places] = images[numbers], classes[numbers]
        return values, labels

    def labels(self) -> Tensor:
        return torch.cat([self._shard(number)[1] for number in range(len(self.manifest.shards))])

    def contexts(self, index: Indices, choice: Indices) -> Tensor:
        raise UsageError(f"{self.place}: captions are read from local shards only; prepare them from that place")

    def _shard(self, number: int) -> tuple[Tensor, Tensor]:
        """A decoded shard; the first thread that needs it fetches it, the others wait for that."""
        with self._lock:
            future = self._shards.pop(number, None)
            mine = future is None or (future.done() and future.exception() is not None)
            future = Future() if future is None or mine else future
            self._shards[number] = future
            if len(self._shards) > self._kept:
                self._shards.popitem(last=False)
        if mine:
            try:
                future.set_result(load_shard(self.place, self.manifest.shards[number], self.manifest))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

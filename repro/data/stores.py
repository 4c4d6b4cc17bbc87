"""Where the images of a stream lie: in memory, or in local shards that are read one image at a time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.data.index import Index, build_index, context_digest, image_digest
from repro.data.manifest import Manifest, Shard
from repro.data.orders import Indices
from repro.data.reading import check_classes
from repro.data.shards import verify_shard
from repro.data.verify import load_index, member_of
from repro.errors import CorruptData, UsageError

OPEN_FILES = 256


class Store(Protocol):
    """The images of a set by number, 0..count-1, in file order."""

    count: int

    def take(self, index: Indices) -> tuple[Tensor, Tensor]:
        """Values (n, C, R, R) in the stored dtype, and labels (n,) int64; copies."""

    def labels(self) -> Tensor:
        """(count,) int64."""

    def contexts(self, index: Indices, choice: Indices) -> Tensor:
        """One context an image, (n, ...): number `choice` modulo how many the image has."""


class MemoryStore:
    """Images in memory: (N, C, R, R) and (N,) int64."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.count = len(images)
        self.images = images
        self._labels = labels

    def take(self, index: Indices) -> tuple[Tensor, Tensor]:
        where = torch.from_numpy(index)
        return self.images[where], self._labels[where]

    def labels(self) -> Tensor:
        return self._labels

    def contexts(self, index: Indices, choice: Indices) -> Tensor:
        raise UsageError("the set has no captions")


class ShardStore:
    """Local shards, read by `pread` at the offsets of their indices; memory holds the labels and the indices' pages.

    Every image is compared with its digest each time it is read. The digests are pinned by the manifest: through the
    index's sha256 or, where a set has no indices beside it, through the shard's, which is then read once as a whole.

    Raises:
        CorruptData: a shard or index is missing or not what the manifest says, here or in `take`.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Manifest) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        self.count = manifest.count
        self._form = manifest.form
        self._indices = [self._index(shard) for shard in manifest.shards]
        self._starts = np.cumsum([0, *(shard.count for shard in manifest.shards)])
        self._labels = np.concatenate([np.asarray(index["label"], dtype=np.int64) for index in self._indices])
        self._files = OpenFiles(OPEN_FILES)
        check_classes(self._labels, manifest, self.folder)

    def take(self, index: Indices) -> tuple[Tensor, Tensor]:
        values = np.empty((len(index), *self._form.shape), dtype=self._form.dtype)
        rows = values.reshape(len(index), -1).view(np.uint8)
        for shard, places, numbers in self._by_shard(index):
            entries = self._indices[shard][numbers]
            file = self._files.get(self.folder / self.manifest.shards[shard].name)
            for place, number, entry in zip(places, numbers.tolist(), entries, strict=True):
                self._read(file, shard, number, int(entry["offset"]), rows[place])
                if image_digest(rows[place].data, int(entry["label"])) != int(entry["digest"]):
                    raise self._damaged(shard, number)
        return torch.from_numpy(values), torch.from_numpy(self._labels[index])

    def labels(self) -> Tensor:
        return torch.from_numpy(self._labels)

    def contexts(self, index: Indices, choice: Indices) -> Tensor:
        form = self._form
        if not form.context_dtype:
            raise UsageError(f"{self.folder}: the set has no captions")
        values = np.empty((len(index), *form.context_shape), dtype=form.context_dtype)
        rows = values.reshape(len(index), -1).view(np.uint8)
        for shard, places, numbers in self._by_shard(index):
            entries = self._indices[shard][numbers]
            file = self._files.get(self.folder / self.manifest.shards[shard].name)
            for place, number, entry in zip(places, numbers.tolist(), entries, strict=True):
                chosen = int(choice[place]) % int(entry["contexts"])
                self._read(file, shard, number, int(entry["context"]) + chosen * form.context_bytes, rows[place])
                if context_digest(rows[place].data) != int(entry["context_digests"][chosen]):
                    raise self._damaged(shard, number, "c.npy")
        return torch.from_numpy(values)

    def _index(self, shard: Shard) -> Index:
        path = self.folder / shard.name
        if not shard.index_sha256:
            index = build_index(verify_shard(self.folder, shard), self._form, str(path))
            if len(index) != shard.count:
                raise CorruptData(f"{path}: {len(index)} images, {shard.count} in the manifest")
            return index
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CorruptData(f"{path}: shard cannot be read ({error.strerror or error})") from error
        if size != shard.bytes:
            raise CorruptData(f"{path}: corrupt shard: {size} bytes, {shard.bytes} in the manifest")
        return load_index(self.folder, shard)

    def _by_shard(self, index: Indices) -> Sequence[tuple[int, Any, Any]]:
        """(shard, places in the batch, numbers in the shard) in the order of the disk."""
        order = np.argsort(index, kind="stable")
        shards = np.searchsorted(self._starts, index[order], side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        return [
            (int(shards[part[0]]), order[part], index[order[part]] - self._starts[shards[part[0]]])
            for part in np.split(np.arange(len(index)), cuts)
            if len(part)
        ]

    def _read(self, file: OpenFile, shard: int, number: int, offset: int, row: npt.NDArray[np.uint8]) -> None:
        """Fill `row` with the bytes at an offset."""
        try:
            read = os.preadv(file.descriptor, [row.data], offset)
        except OSError as error:
            name = self._name(shard, number, "x.npy")
            raise CorruptData(f"{name} cannot be read ({error.strerror or error})") from error
        if read != len(row):
            raise self._damaged(shard, number)

    def _damaged(self, shard: int, number: int, field: str = "x.npy") -> CorruptData:
        return CorruptData(f"{self._name(shard, number, field)} is damaged: its bytes are not what was prepared")

    def _name(self, shard: int, number: int, field: str) -> str:
        entry = self.manifest.shards[shard]
        return f"{self.folder / entry.name}: member {member_of(entry, self.manifest, number, field)}, image {number},"


class OpenFile:
    """A file descriptor that closes when its last user lets it go."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CorruptData(f"{path}: shard cannot be read ({error.strerror or error})") from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class OpenFiles:
    """The files used last, for several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> OpenFile:
        with self._lock:
            file = self._files.pop(path, None) or OpenFile(path)
            self._files[path] = file
            if len(self._files) > self.limit:
                self._files.popitem(last=False)
            return file

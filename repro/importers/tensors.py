"""Tensors of checkpoints: where their numbers lie in a file, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from repro.errors import CorruptData
from repro.importers.archive import Entry
from repro.importers.sources import Source, quoted
from repro.importers.unpickler import Call, Global, Name

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGES: frozenset[Name] = frozenset(("torch", name) for name in DTYPES)
REBUILD: Name = ("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER: Name = ("torch._utils", "_rebuild_parameter")
MAX_DIMENSIONS = 8
LIMIT = 2**48


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `count` numbers: `source` from `offset`; `entry` where the file has a checksum of it."""

    dtype: torch.dtype
    count: int
    source: Source
    offset: int
    entry: Entry | None = None

    def read(self) -> Tensor:
        """All numbers, one-dimensional, on the CPU."""
        if not self.count:
            return torch.empty(0, dtype=self.dtype)
        buffer = bytearray(self.count * self.dtype.itemsize)
        self.source.read_into(self.offset, memoryview(buffer))
        if self.entry is not None:
            self.entry.check(buffer, self.source.name)
        return torch.frombuffer(buffer, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file: element i is storage[offset + sum_d i_d stride_d]."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def view(self, numbers: Tensor) -> Tensor:
        """The tensor as a view of `storage.read()`."""
        return numbers.as_strided(self.shape, self.stride, self.offset)

    def read(self) -> Tensor:
        """The tensor, of its own type, on the CPU."""
        return self.view(self.storage.read()).contiguous()


def storage_type(value: Any, where: str) -> torch.dtype:
    """The type of numbers that a storage class stands for."""
    if type(value) is not Global or (value.module, value.name) not in STORAGES:
        raise CorruptData(f"{where}: {quoted(str(value))} is not the class of a storage")
    return DTYPES[value.name]


def stored_tensor(call: Call, storage: Storage, where: str) -> Stored:
    """A `_rebuild_tensor_v2` on a storage that is known. CorruptData where it reaches outside of it."""
    if not 5 <= len(call.args) <= 7:
        raise CorruptData(f"{where}: a tensor of {len(call.args)} arguments")
    offset, shape, stride = call.args[1:4]
    sizes_ok = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_DIMENSIONS
    if not sizes_ok or any(type(n) is not int or not 0 <= n < LIMIT for n in (offset, *shape, *stride)):
        raise CorruptData(f"{where}: a tensor of sizes {str((offset, shape, stride))[:80]}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last >= storage.count or math.prod(shape) > storage.count):
        raise CorruptData(
            f"{where}: a tensor of shape {str(shape)[:60]} reaches outside of its {storage.count} numbers"
        )
    return Stored(storage, offset, shape, stride)

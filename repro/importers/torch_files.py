"""The two containers of `torch.save`, the zip and the older stream of pickles, read without `torch.load`.

`torch.load(weights_only=True)` reads neither a network object with its optimiser (EDM's training state) nor the plain
pickles, imports the classes that it allows, and checks a file in another pass than it reads it. This reader allows by
name, makes inert records, and reads only the numbers that are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch

from repro.errors import CorruptData
from repro.importers.archive import Entry, read_entries
from repro.importers.sources import Source, quoted
from repro.importers.tensors import REBUILD, REBUILD_PARAMETER, STORAGES, Storage, storage_type
from repro.importers.unpickler import Name, Persistent, children, load, loads

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
PLAIN: frozenset[Name] = frozenset({("collections", "OrderedDict"), ("argparse", "Namespace"), REBUILD, *STORAGES})
"""What a bare state dict, and a training checkpoint of DiT and U-DiT, name."""
OBJECTS: frozenset[Name] = frozenset(
    {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("torch.nn.modules.container", "ModuleDict"),
        ("dnnlib.util", "EasyDict"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("builtins", "set"),
        ("__builtin__", "set"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
        REBUILD,
        REBUILD_PARAMETER,
    }
)
"""What the network objects of EDM and EDM2 name, whichever container they are in."""

StorageOf = Callable[[Any, str], Storage]
"""The storage that the first argument of a tensor refers to; the text says where, for messages."""


def read_zip(source: Source) -> tuple[Any, StorageOf]:
    """The object of a torch zip, and how to find its storages. Raises CorruptData."""
    entries = read_entries(source)
    where = source.name
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise CorruptData(f"{where}: a TorchScript archive, which holds code")
    if "data.pkl" not in entries:
        raise CorruptData(f"{where}: a zip without data.pkl: not written by torch.save")
    if (order := entries.get("byteorder")) and order.content.read(0, min(order.content.size, 20)).strip() != b"little":
        raise CorruptData(f"{where}: numbers that are not little-endian")
    head = entries["data.pkl"]
    content = head.content.read(0, head.content.size)
    head.check(content, where)
    value = loads(content, PLAIN | OBJECTS, f"{where}: data.pkl", persistent=True)
    known: dict[str, tuple[torch.dtype, int]] = {}

    def storage(reference: Any, at: str) -> Storage:
        key, dtype, count = _identified(reference, 5, at)
        entry = entries.get(f"data/{key}")
        if entry is None:
            raise CorruptData(f"{at}: the storage {key} is not in the file")
        _check_same(known, key, dtype, count, at)
        return _zip_storage(entry, dtype, count, at)

    return value, storage


def _zip_storage(entry: Entry, dtype: torch.dtype, count: int, at: str) -> Storage:
    if count * dtype.itemsize != entry.content.size:
        raise CorruptData(f"{at}: {count} numbers of {dtype} are declared, {entry.content.size} bytes are there")
    return Storage(dtype, count, entry.content, 0, entry)


def read_legacy(source: Source, *, nested: bool = False) -> tuple[Any, StorageOf]:
    """The object of a file of torch before 1.6, and how to find its storages. nested: it must be one storage only."""
    where = source.name + (": a tensor's bytes" if nested else "")
    allowed = STORAGES if nested else PLAIN | OBJECTS
    magic, at = load(source, (), where)
    version, at = load(source, (), where, offset=at)
    system, at = load(source, (), where, offset=at)
    if magic != MAGIC or version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
        raise CorruptData(f"{where}: not the header of a torch file of little-endian numbers")
    value, at = load(source, allowed, where, offset=at, persistent=True)
    keys, at = load(source, (), where, offset=at)
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise CorruptData(f"{where}: not a list of storages")
    if nested and (type(value) is not Persistent or len(keys) != 1):
        raise CorruptData(f"{where}: holds something else than one storage")
    places = _places(source, at, value, keys, where)

    def storage(reference: Any, at: str) -> Storage:
        return places[_identified(reference, 6, at)[0]]

    return value, storage


def _places(source: Source, at: int, value: Any, keys: list[str], where: str) -> dict[str, Storage]:
    """Every storage by its key. After the pickles each has its count and its items, in the order of `keys`; the size
    of an item follows from the persistent ids in the object."""
    known: dict[str, tuple[torch.dtype, int]] = {}
    for reference in persistent_ids(value):
        key, dtype, count = _identified(reference, 6, where)
        _check_same(known, key, dtype, count, where)
    if set(known) != set(keys):
        raise CorruptData(f"{where}: its list of storages is not that of its tensors")
    places = {}
    for key in keys:
        dtype, count = known[key]
        if at + 8 + count * dtype.itemsize > source.size:
            raise CorruptData(f"{where}: the file is truncated")
        if struct.unpack("<q", source.read(at, 8))[0] != count:
            raise CorruptData(f"{where}: the storage {quoted(key)} has another length than is declared")
        places[key] = Storage(dtype, count, source, at + 8)
        at += 8 + count * dtype.itemsize
    if at < source.size:
        raise CorruptData(f"{where}: {source.size - at} bytes follow the last storage")
    return places


def _identified(reference: Any, fields: int, at: str) -> tuple[str, torch.dtype, int]:
    """(key, type, count) of a persistent id. The device that it names is where the writer had it: ignored."""
    identity = reference.id if isinstance(reference, Persistent) else None
    if not isinstance(identity, tuple) or len(identity) != fields or identity[0] != "storage":
        raise CorruptData(f"{at}: {quoted(str(identity), 60)} does not name a storage")
    _, kind, key, location, count = identity[:5]
    dtype = storage_type(kind, at)
    if type(key) is not str or not key.isdecimal() or not key.isascii() or type(location) is not str:
        raise CorruptData(f"{at}: a storage of the name {quoted(str(key), 60)!r}")
    if type(count) is not int or not 0 <= count < 2**48 or (fields == 6 and identity[5] is not None):
        raise CorruptData(f"{at}: the storage {key} is a view, or has a length of {quoted(str(count), 30)}")
    return key, dtype, count


def _check_same(known: dict[str, tuple[torch.dtype, int]], key: str, dtype: torch.dtype, count: int, at: str) -> None:
    if known.setdefault(key, (dtype, count)) != (dtype, count):
        raise CorruptData(f"{at}: the storage {key} is declared in two ways")


def persistent_ids(value: Any) -> list[Persistent]:
    """Every persistent id in a value, each object once."""
    found, seen, work = [], set(), [value]
    while work:
        item = work.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Persistent):
            found.append(item)
        else:
            work += children(item)
    return found

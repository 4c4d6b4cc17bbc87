"""The network objects of EDM and EDM2: records that carry their own source code, of which none is looked at.

An object is the record of a call of `_reconstruct_persistent_obj` with one dict; parameters, buffers and sub-modules
are in its state. Walking them gives the state dict that the object would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from repro.errors import CorruptData
from repro.importers.numpy_records import as_number
from repro.importers.sources import Memory, Part, quoted
from repro.importers.tensors import REBUILD, REBUILD_PARAMETER, Storage, Stored, stored_tensor
from repro.importers.torch_files import StorageOf, read_legacy
from repro.importers.unpickler import Call

PERSISTENCE_VERSION = 6
PRIVATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
HARMLESS = ("training", "_init_args", "_init_kwargs")
MAX_KEY = 200


@dataclasses.dataclass(frozen=True)
class NetworkObject:
    """class_name: published; config: arguments of the constructor call; state: key -> tensor, in published order."""

    class_name: str
    config: dict[str, Any]
    state: dict[str, Stored]


def is_object(value: Any) -> bool:
    """Whether a value is the record of a persistent object."""
    return isinstance(value, Call) and value.function.name == "_reconstruct_persistent_obj"


def network_object(value: Any, storage_of: StorageOf, where: str) -> NetworkObject:
    """The outermost network of a snapshot. Raises CorruptData for anything that is not of the published form."""
    class_name, state = _described(value, where)
    config = state.get("_init_kwargs")
    if not isinstance(config, dict) or state.get("_init_args") not in ((), []):
        raise CorruptData(f"{where}: {class_name} does not say what it was built with")
    tensors = dict(_walk(value, "", storage_of, where))
    return NetworkObject(class_name, {key: plain(item, f"{where}: {key}") for key, item in config.items()}, tensors)


def _described(value: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """(class name, state) of a persistent object, or of a torch container of modules ('', its state)."""
    if not isinstance(value, Call):
        raise CorruptData(f"{where}: no network, but a {type(value).__name__}")
    if value.function.name == "ModuleDict" and value.args == () and isinstance(value.state, dict):
        return "", value.state
    content = value.args[0] if is_object(value) and len(value.args) == 1 and value.state is None else None
    if not isinstance(content, dict) or content.get("type") != "class":
        raise CorruptData(f"{where}: {quoted(str(value.function))} where a network is expected")
    if content.get("version") != PERSISTENCE_VERSION or type(content["version"]) is not int:
        raise CorruptData(f"{where}: objects of persistence version {quoted(str(content.get('version')), 30)}, not 6")
    name, state = content.get("class_name"), content.get("state")
    if type(name) is not str or not isinstance(state, dict) or set(content) - _KEYS:
        raise CorruptData(f"{where}: a persistent object of another form than the published one")
    return name, state


_KEYS = {"type", "version", "module_src", "class_name", "state"}


def _walk(value: Any, prefix: str, storage_of: StorageOf, where: str) -> Iterator[tuple[str, Stored]]:
    """Parameters, buffers, then sub-modules in stored order, as `state_dict` has them."""
    name, state = _described(value, f"{where}: {quoted(prefix.rstrip('.')) or 'the network'}")
    at = f"{where}: {quoted(prefix) or name}"
    _check_bookkeeping(state, at)
    hidden = _names(state.get("_non_persistent_buffers_set", set()), at)
    for group in ("_parameters", "_buffers"):
        for key, item in _group(state, group, at):
            if item is not None and not (group == "_buffers" and key in hidden):
                yield prefix + key, tensor(item, storage_of, f"{where}: {quoted(prefix + key)}")
    for key, item in _group(state, "_modules", at):
        if item is not None:
            yield from _walk(item, f"{prefix}{key}.", storage_of, where)


def _group(state: Mapping[str, Any], name: str, at: str) -> list[tuple[str, Any]]:
    group = state.get(name)
    if not isinstance(group, dict) or any(type(key) is not str or "." in key or not key for key in group):
        raise CorruptData(f"{at}: {name} is not a dict of names")
    if any(len(key) > MAX_KEY for key in group):
        raise CorruptData(f"{at}: a name of more than {MAX_KEY} characters")
    return list(group.items())


def _check_bookkeeping(state: Mapping[str, Any], at: str) -> None:
    """Hooks are code: those that PyTorch keeps in a module must be empty."""
    for key, value in state.items():
        if type(key) is str and key.startswith("_") and "hook" in key and value not in ({}, None, False):
            raise CorruptData(f"{at}: has hooks under {quoted(key)}")


def _names(value: Any, at: str) -> set[str]:
    """A set of texts, as protocols 4 and 5 (`set`) or 2 and 3 (a call of it on a list) have it."""
    if isinstance(value, Call) and value.function.name == "set" and len(value.args) <= 1:
        value = set(value.args[0]) if value.args and _texts(value.args[0]) else set() if not value.args else None
    if not isinstance(value, set) or not _texts(list(value)):
        raise CorruptData(f"{at}: not a set of names")
    return value


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is str for item in value)


def tensor(value: Any, storage_of: StorageOf, where: str) -> Stored:
    """A tensor or parameter of a record."""
    if isinstance(value, Call) and _is(value, REBUILD_PARAMETER) and len(value.args) == 3 and value.state is None:
        value = value.args[0]
    if not (isinstance(value, Call) and _is(value, REBUILD) and value.args and value.state is None):
        raise CorruptData(f"{where}: not a tensor")
    return stored_tensor(value, storage_of(value.args[0], where), where)


def _is(call: Call, name: tuple[str, str]) -> bool:
    return (call.function.module, call.function.name) == name


def nested_storage(value: Any, where: str) -> Storage:
    """The storage of a tensor in a plain pickle: `_load_from_bytes` of a whole legacy torch file."""
    content = value.args[0] if isinstance(value, Call) and len(value.args) == 1 and value.state is None else None
    if not isinstance(content, bytes | Part) or value.function.name != "_load_from_bytes":
        raise CorruptData(f"{where}: its numbers are not in the file")
    source = Memory(content, where) if isinstance(content, bytes) else Part(content, 0, content.size)
    source.name = where
    reference, storage_of = read_legacy(source, nested=True)
    return storage_of(reference, where)


def plain(value: Any, where: str) -> Any:
    """An argument as numbers, texts, lists and dicts."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, where) for key, item in value.items()}
    return as_number(value, where)

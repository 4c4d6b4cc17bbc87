"""What is in a published checkpoint: container, family, class, arguments and tensors. Nothing in the file is run.

The container follows from the first bytes, the family from what is inside; a file's name only gives what EDM2 keeps
nowhere else, the time and the length of the average.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from repro.errors import CorruptData, UsageError
from repro.importers import edm, shapes
from repro.importers.objects import NetworkObject, is_object, nested_storage, network_object, tensor
from repro.importers.sources import Source, quoted
from repro.importers.tensors import Stored
from repro.importers.torch_files import LEGACY_START, OBJECTS, StorageOf, read_legacy, read_zip
from repro.importers.unpickler import Call, Name, loads
from repro.training.posthoc import published_nimg

ZIP_START = b"PK\x03\x04"
SNAPSHOT_NAMES: frozenset[Name] = OBJECTS | frozenset(
    {
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "ndarray"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
        ),
    }
)
"""What the plain pickles of EDM and EDM2 name."""
EDM2_CLASSES = ("Precond", "UNet")
PREFIXES = ("module.", "_orig_mod.")
EDM2_NAME = re.compile(r"-(\d{7})-(\d+\.\d+)\.pkl\Z")
EDM_NAME = re.compile(r"network-snapshot-(\d{6})\.pkl\Z")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One network of a file.

    family, name, config: what `repro.importers.build` takes, as far as the file says (`unknown`: arguments that it
    does not). state: published key -> tensor in the file. kind: `ema` or `live`. nimg: images seen; std: relative width
    of the average; both where known. taken: the entries of the file that were used.
    """

    format: str
    family: str
    name: str
    config: dict[str, Any]
    state: dict[str, Stored]
    kind: str
    taken: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    nimg: int | None = None
    std: float | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(source: Source, name: str, std: float | None = None) -> Checkpoint:
    """Look into a checkpoint; its tensors are not read yet.

    Args:
        source: the file.
        name: its published name, which tells time and EMA width of EDM2's.
        std: which of the averages of EDM2's training state to take; None for the live weights.

    Raises:
        CorruptData: a file of another kind, damaged, or one that wants something run.
        UsageError: a checkpoint without a network.
    """
    start = source.read(0, min(64, source.size))
    where = source.name
    if start.startswith(ZIP_START):
        value, storage_of = read_zip(source)
        return _torch(value, storage_of, where, "torch zip", std)
    if start.startswith(LEGACY_START):
        value, storage_of = read_legacy(source)
        return _torch(value, storage_of, where, "legacy torch", std)
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return _snapshot(loads(source, SNAPSHOT_NAMES, where), where, name)
    raise CorruptData(f"{where}: {_looks_like(start)}; checkpoints are torch zips, older torch files or pickles")


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, as a failed download leaves it"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file that it stands for"
    if start.startswith(b"\x93NUMPY"):
        return "a numpy array"
    if start[:1] in b"(c}]":
        return "a pickle of protocol 0 or 1, which no published checkpoint is"
    if start[8:10] == b'{"':
        return "a safetensors file"
    return f"starts with {start[:8].hex(' ')}"


def _snapshot(value: Any, where: str, name: str) -> Checkpoint:
    """EDM's and EDM2's plain pickles: a dict with the network object `ema`."""
    if is_object(value):
        raise UsageError(
            f"{where}: one bare network object, as EDM2's toy example publishes; nothing here evaluates it"
        )
    if not isinstance(value, dict) or not is_object(value.get("ema")):
        raise CorruptData(f"{where}: a pickle without a network under the key 'ema'")
    found = network_object(value["ema"], lambda reference, at: nested_storage(reference, at), where)
    about = {"entries": sorted(str(key)[:60] for key in value)}
    if found.class_name in EDM2_CLASSES:
        nimg, std = edm2_name(name)
        return _of_object(found, "edm2", "EDM2 network snapshot", "ema", ("ema",), nimg=nimg, std=std, about=about)
    form = "EDM network snapshot" if "loss_fn" in value else "EDM network, key ema only"
    match = EDM_NAME.search(name)
    nimg = int(match[1]) * 1000 if match else None
    return _of_object(found, "edm", form, "ema", ("ema",), nimg=nimg, about=about)


def edm2_name(name: str) -> tuple[int | None, float | None]:
    """(images, relative EMA width) that the name of an EDM2 snapshot tells; None where it does not."""
    match = EDM2_NAME.search(name)
    if match is None:
        return None, None
    nimg = published_nimg(int(match[1]))
    return (nimg if nimg // 1000 == int(match[1]) else None), float(match[2])


def _of_object(
    found: NetworkObject, family: str, form: str, kind: str, taken: tuple[str, ...], **rest: Any
) -> Checkpoint:
    known = (*edm.PRECONDITIONERS, *edm.NETWORKS, *EDM2_CLASSES)
    if found.class_name not in known:
        raise CorruptData(f"a network of the class {quoted(found.class_name, 60)!r}; known: {', '.join(known)}")
    return Checkpoint(form, family, found.class_name, found.config, found.state, kind, taken, **rest)


def _torch(value: Any, storage_of: StorageOf, where: str, container: str, std: float | None) -> Checkpoint:
    """What `torch.save` wrote: state dicts, alone or in a training checkpoint, or EDM's training state."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        kind = type(value).__name__ if not isinstance(value, dict) else "dict with keys that are no texts"
        raise UsageError(f"{where}: holds no network, but a {kind}")
    if is_object(value.get("net")):
        found = network_object(value["net"], storage_of, where)
        family = "edm2" if found.class_name in EDM2_CLASSES else "edm"
        return _of_object(found, family, f"EDM training state, {container}", "live", ("net",))
    if isinstance(value.get("net"), dict) and isinstance(value.get("state"), dict):
        return _edm2_training(value, storage_of, where, container, std)
    if isinstance(value.get("ema"), dict):
        return _dit_training(value, storage_of, where, container)
    if {"param_groups", "state"} <= set(value) or "last_epoch" in value:
        raise UsageError(f"{where}: an optimiser or learning rate, without weights of a network")
    if not value or not all(isinstance(item, Call) for item in value.values()):
        raise UsageError(f"{where}: no state dict; it has the keys {quoted(', '.join(list(value)[:8]))}")
    state = _state(value, storage_of, where)
    family, name, config, unknown = shapes.recognise({key: item.shape for key, item in state.items()}, where)
    return Checkpoint(f"{name} state dict, {container}", family, name, config, state, "ema", (), unknown)


def _state(value: Mapping[str, Any], storage_of: StorageOf, where: str) -> dict[str, Stored]:
    """A state dict without the prefix that a wrapper put before all of its keys."""
    state = {key: tensor(item, storage_of, f"{where}: {quoted(key)}") for key, item in value.items()}
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): item for key, item in state.items()}
    return state


def _edm2_training(
    value: Mapping[str, Any], storage_of: StorageOf, where: str, container: str, std: float | None
) -> Checkpoint:
    """State dicts of the live network and of the averages; no constructor arguments."""
    chosen, kind, taken = value["net"], "live", "net"
    if std is not None:
        averages = value.get("ema")
        stds = averages.get("stds") if isinstance(averages, dict) else None
        emas = averages.get("emas") if isinstance(averages, dict) else None
        if not isinstance(stds, list) or not isinstance(emas, list) or len(stds) != len(emas):
            raise UsageError(f"{where}: tracks no averages of known widths")
        if std not in stds or not isinstance(emas[stds.index(std)], dict):
            raise UsageError(f"{where}: has no average of width {std:g}; it has {', '.join(map(str, stds))[:100]}")
        chosen, kind, taken = emas[stds.index(std)], "ema", f"ema.emas[{stds.index(std)}]"
    nimg = value["state"].get("cur_nimg")
    state = _state(chosen, storage_of, where)
    family, name, config, unknown = shapes.recognise({key: item.shape for key, item in state.items()}, where)
    seen = nimg if type(nimg) is int and 0 <= nimg < 2**62 else None
    form = f"EDM2 training state, {container}"
    return Checkpoint(form, family, name, config, state, kind, (taken,), unknown, seen, std)


def _dit_training(value: Mapping[str, Any], storage_of: StorageOf, where: str, container: str) -> Checkpoint:
    """DiT and U-DiT: `ema` is what the papers evaluate; `args` names the network."""
    state = _state(value["ema"], storage_of, where)
    family, name, config, unknown = shapes.recognise({key: item.shape for key, item in state.items()}, where)
    args = value.get("args")
    about = {}
    if isinstance(args, Call) and args.function.name == "Namespace" and isinstance(args.state, dict):
        shown = ("model", "image_size", "num_classes", "global_batch_size")  # the others are paths of the author's
        about = {key: args.state[key] for key in shown if type(args.state.get(key)) in (str, int)}
    return Checkpoint(f"{name} training checkpoint, {container}", family, name, config, state, "ema", ("ema",), unknown,
                      about=about)  # fmt: skip

"""Imported folders: our network's weights as safetensors, the bindings that rebuild it, and where all came from."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor, nn

from repro.config import Node
from repro.errors import CorruptData, UsageError
from repro.files import make_folder
from repro.importers.nodes import Description, as_gin, as_json, from_json
from repro.importers.sources import quoted
from repro.importers.tensors import Stored
from repro.published import CONFIG, FORM, PROVENANCE, Imported, read_imported
from repro.training import snapshots

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends without an error, and leaves nothing otherwise."""
    parent = make_folder(target.parent)
    temporary = parent / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        os.rename(temporary, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def layout(shapes: Mapping[str, tuple[int, ...]], meta: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """(first bytes of a safetensors file of float32 tensors, offset in the file of each). Equal input, equal bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(meta.items()))}
    at, places = 0, {}
    for key, shape in shapes.items():
        count = 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + count]}
        places[key] = at
        at += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    start = len(text).to_bytes(8, "little") + text
    return start, {key: len(start) + place for key, place in places.items()}


def write_stored(
    path: Path,
    state: Mapping[str, Stored],
    meta: Mapping[str, str],
    check: Callable[[str, Tensor], None],
    progress: Progress = lambda done, total: None,
) -> None:
    """Write tensors that are still in a checkpoint as float32 safetensors, holding one storage at a time.

    Args:
        state: our key -> tensor, in the order of the file.
        check: called with key and float32 tensor; raises for one that must not be imported.
        progress: called with (numbers written, numbers).

    Raises:
        CorruptData: NaN or infinities (counted; the first tensor that holds some is named), or no floating numbers.
    """
    start, places = layout({key: item.shape for key, item in state.items()}, meta)
    by_storage: dict[int, list[str]] = {}
    for key, item in state.items():  # a storage that several tensors share is read once
        by_storage.setdefault(id(item.storage), []).append(key)
    total, done, bad, first = sum(item.numel for item in state.values()), 0, 0, ""
    with open(path, "wb") as stream:
        stream.write(start)
        for keys in by_storage.values():
            numbers = state[keys[0]].storage.read()
            for key in keys:
                if not numbers.is_floating_point():
                    raise CorruptData(f"{quoted(key)}: {numbers.dtype} where weights are expected")
                value = state[key].view(numbers).to(torch.float32).contiguous()
                if not torch.isfinite(value.sum()) and (count := int((~torch.isfinite(value)).sum())):
                    bad, first = bad + count, first or key
                check(key, value)
                stream.seek(places[key])
                _write(stream, value)
                done += value.numel()
                progress(done, total)
    if bad:
        raise CorruptData(f"{bad} of {total} weights are NaN or infinite, the first in {quoted(first)}")


def _write(stream: BinaryIO, value: Tensor) -> None:
    """The bytes of a contiguous tensor, without a copy."""
    stream.write(value.reshape(-1).view(torch.uint8).numpy().data)


def write_state(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write tensors in memory as float32 safetensors."""
    start, places = layout({key: tuple(value.shape) for key, value in state.items()}, meta)
    with open(path, "wb") as stream:
        stream.write(start)
        for key, value in state.items():
            stream.seek(places[key])
            _write(stream, value.detach().to("cpu", torch.float32).contiguous())


def write_description(folder: Path, node: Node, provenance: Mapping[str, Any]) -> None:
    """`config.gin` and `provenance.json`. provenance: all of it but the network and the folder's form."""
    head = [f"# The network of {provenance['source']}, sha256 {provenance['sha256']}."]
    (folder / CONFIG).write_text("\n".join([*head, *as_gin(node)]) + "\n", encoding="utf-8")
    content = {**provenance, "form": FORM, "network": as_json(node)}
    (folder / PROVENANCE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> nn.Module:
    """The network of an imported or exported folder with its weights, in evaluation mode on the CPU, float32.

    Raises:
        CorruptData: no such folder, or one whose parts do not fit each other.
    """
    imported = read_imported(folder)
    try:
        net = Description(from_json(imported.network)).build()
    except ValueError as error:
        raise CorruptData(f"{folder}: {error}") from None
    fill(net, imported)
    return net.eval()


def fill(net: nn.Module, imported: Imported) -> None:
    """Load imported weights into a network of the same form. CorruptData where they are damaged or of another."""
    file = imported.weights
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            if (stream.metadata() or {}).get("source_sha256") != imported.sha256:
                raise CorruptData(f"{file}: holds the weights of another file than its provenance says")
            state = {key: stream.get_tensor(key) for key in stream.keys()}  # views of the file
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptData(f"{file}: cannot be read ({error}); remove the folder and import the file anew") from None
    snapshots.fill(net, state, file)

"""Training state on disk: whole, verified by its own name, the last two kept.

A checkpoint is `checkpoint-<images seen>-<first 16 hex digits of its sha256>.pt`: a truncated or damaged file does not
hash to its name and is passed over for the one before it, under a name that no later save counts or removes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from repro.errors import CorruptData
from repro.files import write_atomic

KEEP = 2
_NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.pt")


class Loaded(NamedTuple):
    """state: what was saved, or None where there is nothing to load; damaged: file names that were passed over."""

    state: dict[str, Any] | None
    damaged: list[str]


def save(folder: Path, nimg: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint of tensors, numbers and strings atomically, then remove all but the last two."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"checkpoint-{nimg:012d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    if not path.exists():
        write_atomic(path, content)
    for old in _files(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> Loaded:
    """The newest checkpoint that is whole; the names of newer ones that are not.

    Those are renamed to `<name>.damaged`: left in place, they would count among the last two that `save` keeps, and
    push out whole ones.

    Raises:
        CorruptData: a checkpoint cannot be read now (an I/O error is no damage), or is whole but holds more than
            tensors, numbers and strings: it was not written by this program, and nothing in it is run.
    """
    damaged: list[str] = []
    for path in reversed(_files(folder)):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CorruptData(f"{path}: cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(content).hexdigest()[:16] == path.stem.split("-")[2]:
            return Loaded(_unpack(path, content), damaged)
        path.rename(path.with_name(f"{path.name}.damaged"))
        damaged.append(path.name)
    return Loaded(None, damaged)


def _unpack(path: Path, content: bytes) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise CorruptData(f"{path}: is no checkpoint of repro and was not loaded; move it away to train anew")
    return state


def _files(folder: Path) -> list[Path]:
    """Checkpoints by age in images, oldest first."""
    found = [path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.name.split("-")[1]), path.name))

"""Training state on disk: whole, verified by its own name, the last two kept.

A checkpoint is `checkpoint-<images seen>-<first 16 hex digits of its sha256>.pt`: a truncated or damaged file does not
hash to its name and is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

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
    """The newest checkpoint that is whole; the names of newer ones that are not."""
    damaged: list[str] = []
    for path in reversed(_files(folder)):
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match and hashlib.sha256(content).hexdigest()[:16] == match.group(2):
            return Loaded(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), damaged)
        damaged.append(path.name)
    return Loaded(None, damaged)


def _files(folder: Path) -> list[Path]:
    """Checkpoints by age in images, oldest first."""
    found = [path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.name.split("-")[1]), path.name))

"""What is costly to find out and follows from the sources alone, kept between commands: it spares them `import torch`.

One small file a fact, under a folder named after the package's sources: another version sees nothing of it. A file
that is damaged, or a folder that cannot be written, costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro import assets

KEPT_VERSIONS = 4
"""Versions of the sources whose facts are kept; the least recently begun ones go."""


def root() -> Path:
    """$REPRO_CACHE, or `repro` in the user's cache folder."""
    if chosen := os.environ.get("REPRO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repro"


def remember(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """The JSON value of `compute()`, from the cache where it is there.

    Args:
        kind: what is remembered, such as 'floor'.
        key: all that decides the value, besides the sources of the package.
        compute: gives the value; its errors pass, and neither they nor None are remembered.
    """
    found = load(kind, key)
    if found is None:
        found = compute()
        if found is not None:
            store(kind, key, found)
    return found


def load(kind: str, key: str) -> Any:
    """A remembered value, or None."""
    try:
        checksum, _, body = _path(kind, key).read_bytes().partition(b"\n")
        return json.loads(body) if checksum.decode() == _digest(body) else None
    except (OSError, ValueError):
        return None


def store(kind: str, key: str, value: Any) -> None:
    """Remember a JSON value; nothing happens where the folder cannot be written."""
    path = _path(kind, key)
    body = json.dumps(value, separators=(",", ":")).encode()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            _forget_old_versions(path.parent)
        temporary.write_bytes(f"{_digest(body)}\n".encode() + body)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _path(kind: str, key: str) -> Path:
    return root() / assets.sources_sha256()[:16] / f"{kind}-{_digest(key.encode())[:32]}.json"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _forget_old_versions(current: Path) -> None:
    versions = [path for path in current.parent.iterdir() if len(path.name) == 16 and path.is_dir()]
    for old in sorted(versions, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_VERSIONS:]:
        if old != current:
            shutil.rmtree(old, ignore_errors=True)

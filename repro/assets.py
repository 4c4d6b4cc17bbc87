"""Where the files that belong to the package lie, in a clone and in an installed wheel alike."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@cache
def root() -> Path:
    """The folder that holds `gin/`, `tables/` and `slurm/`: the clone, or `repro/_assets` in a wheel."""
    bundled = PACKAGE / "_assets"
    return bundled if bundled.is_dir() else PACKAGE.parent


def gin_dir() -> Path:
    """Root of all Gin files; includes are written relative to it."""
    return root() / "gin"


def tables_dir() -> Path:
    """Folder of the tables' TOML files, mini references and fingerprints."""
    return root() / "tables"


def slurm_dir() -> Path:
    """Folder of the cluster profiles."""
    return root() / "slurm"


@cache
def sources_sha256() -> str:
    """sha256 over every `.py` file of the package and the shipped weights: which code made a record."""
    digest = hashlib.sha256()
    files = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".safetensors") and "_assets" not in p.parts]
    for path in sorted(files, key=lambda p: p.relative_to(PACKAGE).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()

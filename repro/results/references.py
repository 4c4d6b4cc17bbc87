"""Committed numbers to compare with: mini references with their spread, fingerprints, and pinned hashes."""

from __future__ import annotations

import dataclasses
import datetime
import json
from functools import cache
from pathlib import Path
from typing import Any

from repro import assets
from repro.errors import CorruptData
from repro.files import write_json
from repro.results import provenance


@dataclasses.dataclass(frozen=True)
class Reference:
    """Replicates of one cell at one scale: training seeds, their values, and the configuration they were measured with."""

    experiment: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]


def stem(table: str) -> str:
    """File name stem of a table: edm/table2 -> edm_table2."""
    return table.replace("/", "_", 1)


def reference_file(table: str, scale: str) -> Path:
    return assets.tables_dir() / f"{stem(table)}.{scale}.json"


def fingerprint_file(table: str) -> Path:
    return assets.tables_dir() / f"{stem(table)}.fingerprints.json"


def hashes_file() -> Path:
    return assets.tables_dir() / "hashes.json"


@cache
def load_references(table: str, scale: str) -> dict[str, Reference]:
    """Cell name -> reference; empty where none are committed. Raises CorruptData for a file that cannot be read."""
    content = _read(reference_file(table, scale))
    cells = content.get("cells", {})
    try:
        return {
            name: Reference(cell["experiment"], tuple(cell["seeds"]), tuple(cell["values"]))
            for name, cell in cells.items()
        }
    except (KeyError, TypeError) as error:
        raise CorruptData(f"{reference_file(table, scale)}: {type(error).__name__}: {error}") from None


def load_fingerprints(table: str) -> dict[str, dict[str, Any]]:
    """Cell name -> fingerprint; empty where none are committed."""
    return _read(fingerprint_file(table)).get("cells", {})


def load_hashes() -> dict[str, dict[str, str]]:
    """Cell name -> {trajectory, evaluation}: the pinned hashes of all full cells."""
    return _read(hashes_file()).get("cells", {})


def write(path: Path, command: str, cells: dict[str, Any], **more: Any) -> None:
    """Write a committed file with what made it: command, date, versions and machine."""
    made = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "sources_sha256": assets.sources_sha256(),
    }
    write_json(path, {"made": made, **more, "cells": cells})


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptData(f"{path}: {error}") from None
    return content if isinstance(content, dict) else {}

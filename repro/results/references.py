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
    """Replicates of one cell at one scale: training seeds, their values, and the configuration that they are of."""

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
    path = reference_file(table, scale)
    found = {}
    for name, cell in _cells(path, ("experiment", "seeds", "values")).items():
        seeds, values = cell["seeds"], cell["values"]
        if not (_all(seeds, int) and _all(values, int | float) and len(seeds) == len(values) >= 2):
            raise CorruptData(f"{path}: {name} needs two or more values, all numbers, and as many seeds")
        found[name] = Reference(cell["experiment"], tuple(seeds), tuple(values))
    return found


def load_fingerprints(table: str) -> dict[str, dict[str, Any]]:
    """Cell name -> {experiment, values}; empty where none are committed. Raises CorruptData as `load_references`."""
    return _cells(fingerprint_file(table), ("experiment", "values"))


def load_hashes() -> dict[str, dict[str, str]]:
    """Cell name -> {trajectory, evaluation}: the pinned hashes of all full cells."""
    return _cells(hashes_file(), ("trajectory", "evaluation"))


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
    load_references.cache_clear()


def _cells(path: Path, keys: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The `cells` of a committed file, each with at least these keys; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptData(f"{path}: not a whole JSON file ({error})") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, dict):
        raise CorruptData(f"{path}: has no cells")
    for name, cell in cells.items():
        missing = [key for key in keys if not isinstance(cell, dict) or key not in cell]
        if missing:
            raise CorruptData(f"{path}: {name} has no {missing[0]}")
    return cells


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)

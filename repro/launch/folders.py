"""What the folder of a run says about how far it is, without torch and without opening a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from repro.identity import SHORT

TAIL_BYTES = 8192


def trained_nimg(folder: Path) -> int:
    """Images that the newest checkpoint of a run has seen; 0 where there is none."""
    counts = [0]
    for path in folder.glob("checkpoint-*-*.pt"):
        digits = path.name.split("-")[1]
        if digits.isdigit():
            counts.append(int(digits))
    return max(counts)


def last_progress(folder: Path) -> dict[str, Any] | None:
    """The newest whole line of a run's `log.jsonl` that says how far training is; None where there is none."""
    try:
        with open(folder / "log.jsonl", "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "nimg" in entry:
            return entry
    return None


def records_there(run: Path, evaluation_hash: str) -> set[tuple[int, int]]:
    """(milestone, range) of every record file of an evaluation; they are not opened."""
    found = set()
    for path in (run / "eval" / evaluation_hash[:SHORT]).glob("*/range*/record.json"):
        milestone, k = path.parent.parent.name, path.parent.name.removeprefix("range")
        if milestone.isdigit() and k.isdigit():
            found.add((int(milestone), int(k)))
    return found


def blocks_there(run: Path) -> int:
    """Blocks of samples that interrupted evaluations of a run have left: progress that no record shows yet."""
    return sum(1 for _ in run.glob("eval/*/*/range*/partial-*/block-*.npz"))

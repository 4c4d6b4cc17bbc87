"""Valid records without training: the identity of a real cell, and values that the test chooses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repro import assets
from repro.cells import Resolved, resolve
from repro.results.records import Metric, Record, write_record
from repro.tables import find_cell

F_VP = "edm/table2/f/cifar10-cond-vp"
MANIFEST = "a" * 64


def resolved(cell: str = F_VP, scale: str = "mini", bindings: Sequence[str] = (), seed: int = 0) -> Resolved:
    """A cell's replicate."""
    return resolve(find_cell(cell), scale, bindings, seed=seed)


def make_record(base: Resolved, value: float, **changes: Any) -> Record:
    """A record of a replicate whose primary metric is `value`; by default at the last milestone, range 0, not stale."""
    milestone = changes.pop("milestone_nimg", base.selection().milestones()[-1])
    count = base.evaluation.args["num_samples"]
    k = changes.get("range", 0)
    content: dict[str, Any] = {
        "cell": base.cell.name,
        "scale": base.scale,
        "trajectory_hash": base.trajectory_hash,
        "evaluation_hash": base.evaluation_hash,
        "config": base.config,
        "seed": base.seed,
        "milestone_nimg": milestone,
        "nimg": milestone,
        "range": k,
        "first_seed": k * count,
        "num_samples": count,
        "nfe": 15.0,
        "metrics": {base.protocol().primary: Metric(value, count, "DigitsProtocol")},
        "protocol": {"class": "DigitsProtocol"},
        "weights": "trained",
        "data_manifest_sha256": MANIFEST,
        "reference_sha256": "b" * 64,
        "sources_sha256": assets.sources_sha256(),
        "git_revision": None,
        "git_dirty": None,
        "versions": {"python": "3.11.2"},
        "hardware": {"machine": "x86_64", "cpu": "", "cores": 2, "gpus": []},
        "execution": {"threads": 1},
        "threads": 1,
        "world_size": 1,
        "seconds": {"sampling": 1.5, "scoring": 0.5},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**content, **changes})


def write_values(runs: Path, cell: str, values: Iterable[float], first_seed: int = 0, **changes: Any) -> list[Path]:
    """Write one mini record a value, of the seeds first_seed, first_seed + 1, ..."""
    base = resolved(cell)
    return [
        write_record(runs, make_record(base.with_seed(first_seed + index), value, **changes))
        for index, value in enumerate(values)
    ]

"""Seconds of `repro collect` over 1,000 records, imports included, beside reading the same files with json.load alone.

python benchmarks/collect.py [RECORDS]
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repro import assets
from repro.cells import resolve
from repro.results.records import Metric, Record, find_records, write_record
from repro.tables import load_table


def fill(runs: Path, count: int) -> None:
    """Write `count` records: every cell of the default columns at mini, as many seeds as it takes."""
    table = load_table("edm/table2")
    bases = [resolve(cell, "mini") for cell in table.select(None, list(table.mini_columns))]
    template: dict[str, object] = {f.name: "" for f in dataclasses.fields(Record)}
    for index in range(count):
        base = bases[index % len(bases)].with_seed(index // len(bases))
        metric = Metric(1.0 + index / count, 2000, "DigitsProtocol")
        content = {
            **template, "cell": base.cell.name, "scale": "mini", "trajectory_hash": base.trajectory_hash,
            "evaluation_hash": base.evaluation_hash, "config": base.config, "seed": base.seed,
            "milestone_nimg": base.selection().milestones()[-1], "nimg": 50000, "range": 0, "first_seed": 0,
            "num_samples": 2000, "nfe": 15.0, "metrics": {base.protocol().primary: metric}, "protocol": {},
            "data_manifest_sha256": "0" * 64, "sources_sha256": assets.sources_sha256(), "git_dirty": None,
            "versions": {}, "hardware": {}, "execution": {}, "threads": 1, "world_size": 1, "seconds": {},
            "schema_version": 1,
        }  # fmt: skip
        write_record(runs, Record(**content))  # type: ignore[arg-type]


def main() -> None:
    """Print both times and their ratio."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        fill(runs, count)
        command = [sys.executable, "-m", "repro", "collect", "edm/table2", "--scale", "mini"]
        command += ["--runs", folder, "--data", folder]
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        for path in find_records([runs]):
            json.loads(path.read_bytes())
        alone = time.perf_counter() - started
    print(f"{count} records: repro collect {min(times):.2f} s (target 3), json alone {alone:.2f} s")
    print(f"ratio {min(times) / alone:.1f}")


if __name__ == "__main__":
    main()

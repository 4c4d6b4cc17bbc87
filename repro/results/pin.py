"""Make the committed numbers anew: `python -m repro.results.pin {hashes,fingerprints,references}`.

    python -m repro.results.pin hashes
    python -m repro.results.pin fingerprints edm/table2
    repro reproduce edm/table2 --scale mini --seeds 8 --first-seed 1000 --runs DIR
    python -m repro.results.pin references edm/table2 --scale mini --runs DIR

Hashes change only with a release note: a changed hash costs users their runs. References are measured once the scale's
factors are fixed, and never edited.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.cells import experiment_digest, resolve
from repro.errors import MissingPrerequisite, UsageError
from repro.results import references
from repro.results.collect import collect
from repro.results.fingerprint import Shared, fingerprint
from repro.tables import load_table, table_names


def full_hashes() -> dict[str, dict[str, str]]:
    """Trajectory and evaluation hash of every cell of every table at full scale."""
    found = {}
    for name in table_names():
        for cell in load_table(name).computable:
            resolved = resolve(cell, "full")
            found[cell.name] = {"trajectory": resolved.trajectory_hash, "evaluation": resolved.evaluation_hash}
    return found


def all_fingerprints(table: str, data: Path) -> dict[str, dict[str, Any]]:
    """Fingerprint of every cell of a table at mini, with the digest of the configuration it belongs to."""
    found = {}
    shared: Shared = {}
    for cell in load_table(table).computable:
        resolved = resolve(cell, "mini")
        values = fingerprint(resolved, data, shared)
        found[cell.name] = {"experiment": experiment_digest(resolved), "values": values}
        print(cell.name, file=sys.stderr)
    return found


LEAST = 8
"""Replicates that a reference needs, where --least does not say."""


def measured(table: str, scale: str, runs: Sequence[Path], least: int) -> dict[str, dict[str, Any]]:
    """Seeds, values and moments of every cell of the table's default columns. Raises where replicates are missing."""
    loaded = load_table(table)
    cells = loaded.select(None, list(loaded.mini_columns))
    found = {}
    for result in collect(loaded, scale, runs, cells).cells:
        if not result.replicates:
            continue
        if result.stale:
            raise UsageError(f"{result.cell.name}: its records were made by other sources; measure it with these")
        if len(result.replicates) < least:
            raise MissingPrerequisite(f"{result.cell.name} has {len(result.replicates)} replicates, needs {least}")
        found[result.cell.name] = {
            "experiment": experiment_digest(resolve(result.cell, scale)),
            "metric": result.metric,
            "seeds": [replicate.seed for replicate in result.replicates],
            "values": result.values,
            "mean": result.mean,
            "sd": result.sd,
        }
    if not found:
        raise MissingPrerequisite(f"no records of {table} at {scale} in {', '.join(map(str, runs))}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.results.pin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("hashes", "fingerprints", "references"))
    parser.add_argument("table", nargs="?", default="edm/table2")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--runs", type=Path, action="append", default=[])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--least", type=int, default=LEAST, help="replicates that every cell must have")
    options = parser.parse_args(arguments)
    if options.what == "hashes":
        references.write(references.hashes_file(), "python -m repro.results.pin hashes", full_hashes())
        return
    command = f"python -m repro.results.pin {options.what} {options.table}"
    if options.what == "fingerprints":
        path = references.fingerprint_file(options.table)
        references.write(path, command, all_fingerprints(options.table, options.data))
        return
    cells = measured(options.table, options.scale, options.runs or [Path("runs")], options.least)
    seeds = next(iter(cells.values()))["seeds"]
    made = f"repro reproduce {options.table} --scale {options.scale} --seeds {len(seeds)} --first-seed {seeds[0]}"
    least = f" --least {options.least}" if options.least != LEAST else ""
    path = references.reference_file(options.table, options.scale)
    references.write(path, f"{made}; {command} --scale {options.scale}{least}", cells, scale=options.scale)


if __name__ == "__main__":
    main()

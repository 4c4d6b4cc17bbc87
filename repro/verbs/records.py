"""`repro records export` and `import`: records from one cluster to another, in one file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from repro.errors import CheckFailed
from repro.results.exchange import export_records, import_records


def export(options: argparse.Namespace) -> int:
    """Pack every whole record of some folders of runs."""
    runs = options.runs or [Path(os.environ.get("REPRO_RUNS", "runs"))]
    result = export_records(runs, options.file)
    for problem in result.problems:
        print(f"not exported: {problem}", file=sys.stderr)
    print(f"{result.written} records in {options.file}")
    return 0


def import_(options: argparse.Namespace) -> int:
    """Unpack records into a folder of runs; what contradicts a record that is there is reported and left out."""
    runs = (options.runs or [Path(os.environ.get("REPRO_RUNS", "runs"))])[0]
    result = import_records(options.file, runs)
    for problem in result.problems:
        print(f"not imported: {problem}", file=sys.stderr)
    print(f"{result.written} records imported into {runs}, {result.known} were there")
    if result.conflicts:
        raise CheckFailed(
            f"{result.conflicts} records contradict records of the same evaluation that are there; neither is averaged "
            "or replaced: compare the two, and remove the wrong one"
        )
    return 0

"""`repro stability`: what the scaling of long skips does to norms, gradients and responses of networks."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from repro.cells import Resolved, resolve
from repro.errors import UsageError
from repro.files import make_folder, write_atomic
from repro.identity import digest
from repro.results.render import without_nan
from repro.verbs.computing import computable_cell, folders
from repro.verbs.terminal import status_line

EXPLAINED = """- norms are L2, means over the probe's images (squared norm: the mean of the squares)
- oscillation: (max - min) / mean of a norm over the last ten points, so that growth counts too; sd of steps: of its
  changes from point to point"""
EVERY = 10
"""Steps between measurements, where --every does not say."""


def stability(options: argparse.Namespace) -> int:
    """Measure cells, fresh, in training, or trained; print the table, write figure and tables."""
    from repro.results import stability_report
    from repro.results.plotting import as_bytes

    if options.every and not options.steps:
        raise UsageError("--every needs --steps: trained networks are measured at the milestones that their runs have")
    every = options.every or EVERY
    where = folders(options, write=False)
    cells = [resolve(computable_cell(name), options.scale, options.gin, seed=options.seed) for name in options.cells]
    curves = [stability_report.study(cell, where, steps=options.steps, every=every, say=status_line) for cell in cells]
    status_line("")
    table, layers = stability_report.rows(curves), stability_report.layers(curves)
    related = stability_report.correlations(curves)
    target = options.out or where.runs / default_name(cells, options.steps, every)
    make_folder(target.parent)
    figure = stability_report.draw(curves)
    contents = {f".{form}": as_bytes(figure, form) for form in ("png", "svg")}
    contents |= {".cells.csv": _csv(table), ".layers.csv": _csv(layers)}
    if options.json:
        found = {"cells": table, "layers": layers, "correlations": related}
        print(json.dumps(without_nan(found), indent=1))
    else:
        for lines in (table, layers):
            print(tabulate(lines, headers="keys", tablefmt="github", floatfmt=".4g", missingval=""), end="\n\n")
        for name, value in related.items():
            shown = "not defined for these cells" if math.isnan(value) else f"{value:.2f}"
            print(f"- rank correlation of the fresh sum of kappa^2 with {name}, over {len(cells)} cells: {shown}")
        print(EXPLAINED)
        fresh = [curve.cell for curve in curves if len(curve.points) == 1]
        if fresh:
            print(f"- fresh networks alone, no weights of a run are there: {', '.join(fresh)}")
    for suffix, content in contents.items():
        write_atomic(target.with_name(target.name + suffix), content)
        print(target.with_name(target.name + suffix), file=sys.stderr)
    return 0


def default_name(cells: Sequence[Resolved], steps: int, every: int) -> str:
    """Name of the report of some cells: other cells, other networks or other steps make another one."""
    first = f"stability-{cells[0].cell.name.replace('/', '-')}"
    more = f"-and-{len(cells) - 1}-more" if len(cells) > 1 else ""
    told = digest([[cell.cell.name, cell.trajectory_hash] for cell in cells] + [[steps, every if steps else 0]])
    return f"{first}{more}.{cells[0].scale}.{told[:6]}"


def _csv(lines: Sequence[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue().encode()

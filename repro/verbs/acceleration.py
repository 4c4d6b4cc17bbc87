"""`repro acceleration`: images that each row needs to reach the best score of a baseline, from the records."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from tabulate import tabulate

from repro.cells import resolve
from repro.errors import UsageError
from repro.results.acceleration import Ratio, ratios
from repro.results.collect import collect, mean_and_sd
from repro.suggest import suggest
from repro.tables import load_table
from repro.verbs.computing import chosen_cells, folders


def acceleration(options: argparse.Namespace) -> int:
    """Print the ratios; computes nothing."""
    table = load_table(options.table)
    baseline = options.baseline or next(iter(table.rows))
    if baseline not in table.rows:
        raise UsageError(f"--baseline: table {table.name} has no row {baseline!r}{suggest(baseline, table.rows)}")
    cells = [cell for cell in chosen_cells(options) if not cell.reference_only]
    if not any(resolve(cell, options.scale, options.gin).preview() for cell in cells):
        raise UsageError(
            f"table {table.name} has no previews: its weights are not chosen among candidates, so there are no scores "
            "over training to compare"
        )
    where = folders(options, write=False)
    collection = collect(table, options.scale, where.readable, cells, options.gin)
    found = ratios(collection, baseline)
    if options.json:
        print(json.dumps([_plain(ratio) for ratio in found], indent=1))
        return 0
    lines = [
        {
            "column": table.columns[ratio.column],
            "row": table.rows[ratio.row],
            "best preview": f"{ratio.best:.2f}",
            "kimg to the baseline's best": _spread([value / 1000 for value in ratio.images], 1),
            "acceleration": _spread(list(ratio.ratios), 2),
            "reached": f"{len(ratio.reached)} of {len(ratio.seeds)} seeds",
        }
        for ratio in found
    ]
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\n- {table.title}, at scale {options.scale}: images that the baseline ({table.rows[baseline]}) needs to")
    print("  reach its own best preview, over those that a row needs to reach that score; by seed; mean ± sd.")
    print("- Lines are straight between candidates; a mean leaves out seeds that never reached the score.")
    return 0


def _spread(values: list[float], digits: int) -> str:
    """`1.23 ± 0.04`, of the values that are numbers."""
    mean, sd = mean_and_sd([value for value in values if not math.isnan(value)])
    if math.isnan(mean):
        return "not reached"
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")


def _plain(ratio: Ratio) -> dict[str, Any]:
    return {
        "row": ratio.row,
        "column": ratio.column,
        "seeds": list(ratio.seeds),
        "best": ratio.best,
        "images": [None if math.isnan(value) else value for value in ratio.images],
        "ratios": [None if math.isnan(value) else value for value in ratio.ratios],
    }

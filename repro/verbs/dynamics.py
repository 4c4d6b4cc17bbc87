"""`repro dynamics`: what the runs of some cells recorded of their activations, weights and updates."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from repro.cells import resolve
from repro.errors import MissingPrerequisite
from repro.results.render import without_nan
from repro.verbs.computing import computable_cell, folders
from repro.verbs.plotting import save


def run(options: argparse.Namespace) -> int:
    """Print the drifts of each cell and draw them side by side."""
    where = folders(options, write=False)
    cells = [computable_cell(name) for name in options.cells]
    runs = {cell.name: resolve(cell, options.scale, options.gin, seed=options.first_seed).run for cell in cells}
    places = {name: _find(name, run, where.readable, options.scale) for name, run in runs.items()}
    from repro.results import dynamics  # heavy, like what follows
    from repro.training.dynamics import read

    histories = {name: read(place) for name, place in places.items()}
    found = {name: dynamics.summary(history) for name, history in histories.items()}
    if options.json:
        print(json.dumps(without_nan(found), indent=1))
    else:
        from tabulate import tabulate

        for name, lines in found.items():
            print(f"{name} at {options.scale}, {len(histories[name])} records; medians over layers")
            print(tabulate(lines, headers="keys", tablefmt="github", floatfmt=".3g"), end="\n\n")
    path = options.out or where.runs / f"dynamics.{options.scale}.png"
    save(dynamics.draw(histories), path)
    return 0


def _find(name: str, run: str, readable: list[Path], scale: str) -> Path:
    found = next((folder / run for folder in readable if (folder / run).is_dir()), None)
    if found is None:
        raise MissingPrerequisite(f"{name} was not trained in these runs: `repro run {name} --scale {scale}` trains it")
    return found

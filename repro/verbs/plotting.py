"""`repro plot`: the records of a table as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from repro.files import make_folder, write_atomic
from repro.results.collect import Collection, collect
from repro.tables import load_table
from repro.verbs.computing import chosen_cells, folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("png", "svg")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG beside each other and say where; the suffix of `path` is replaced."""
    from repro.results.plotting import as_bytes

    make_folder(path.parent)
    for form in FORMS:
        write_atomic(path.with_suffix(f".{form}"), as_bytes(figure, form))
    print(f"drawn to {path.with_suffix('.png')} and .svg", file=sys.stderr)


def plot(options: argparse.Namespace) -> int:
    """Draw what there is, and say what is missing; computes nothing."""
    where = folders(options, write=False)
    table = load_table(options.table)
    cells = chosen_cells(options)
    collection = collect(table, options.scale, where.readable, cells, options.gin)
    also: Collection | None = None
    if table.plot and table.plot.also:
        other = load_table(table.plot.also)
        columns = [column for column in other.columns if column in {cell.column for cell in cells}]
        others = [cell for cell in other.select(None, columns) if cell.row in table.plot.labels]
        also = collect(other, options.scale, where.readable, others, options.gin)
    from repro.results.plotting import as_bytes, draw  # imports matplotlib

    figure = draw(collection, also)
    target = options.out or where.runs / f"{table.name.replace('/', '_', 1)}.{options.scale}"
    make_folder(target.parent)
    named = target.suffix[1:] in FORMS and options.out is not None
    for form in FORMS if not named else (target.suffix[1:],):
        path = target if named else target.with_name(f"{target.name}.{form}")
        write_atomic(path, as_bytes(figure, form))
        print(path)
    missing = [r.cell.name for r in collection.cells if not r.replicates and not r.cell.reference_only]
    if missing:
        print(f"not drawn, no value: {len(missing)} of {len(collection.cells)} cells, such as {missing[0]}")
    return 0

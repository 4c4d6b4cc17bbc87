"""Collections as pictures: curves for the figures of a paper, dots for its tables."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repro.errors import UsageError
from repro.results.collect import CellResult, Collection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
MARKERS = "osD^vPX"
PANEL = (4.6, 3.7)
"""Width and height of a panel in inches."""
LOG_ABOVE = 3.0
"""A curve whose values span more than this factor is drawn on a logarithmic axis."""


def draw(collection: Collection, also: Collection | None = None) -> Figure:
    """The picture of a table at a scale: a panel a column.

    Args:
        also: the results of the table that the plot names as `also`.

    Raises:
        UsageError: there is no value to draw.
    """
    from matplotlib.figure import Figure  # heavy

    columns = [name for name in collection.table.columns if any(r.replicates for r in of_column(collection, name))]
    if not columns:
        raise UsageError(
            f"{collection.table.name} at {collection.scale}: no value to draw; `repro reproduce` makes them"
        )
    figure = Figure(figsize=(PANEL[0] * len(columns), PANEL[1]), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, name in zip(panels, columns, strict=True):
        results = of_column(collection, name)
        if collection.table.plot:
            _curves(axes, collection, [*results, *(of_column(also, name) if also else ())])
        else:
            _dots(axes, collection, results)
        axes.set_title(collection.table.columns[name], fontsize=10)
        axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    panels[0].set_ylabel(_label(collection))
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{collection.table.title} ({collection.scale})", fontsize=11 if len(columns) > 1 else 8)
    return figure


def curve(points: Sequence[tuple[float, Sequence[float]]], x: str, y: str, title: str) -> Figure:
    """One curve of (x, values of the replicates): their mean, and bars from the lowest to the highest."""
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    means = [sum(values) / len(values) for _, values in points]
    bars = _bars(means, [min(values) for _, values in points], [max(values) for _, values in points])
    axes.errorbar([at for at, _ in points], means, yerr=bars, color=COLOURS[0], marker="o", markersize=4, capsize=2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=9)
    axes.grid(True, linewidth=0.3, alpha=0.6)
    return figure


def as_bytes(figure: Figure, form: str) -> bytes:
    """The figure as PNG or SVG; equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "repro"}):
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def of_column(collection: Collection, column: str) -> list[CellResult]:
    """The results of one column, in the table's order of rows."""
    return [result for result in collection.cells if result.cell.column == column]


def points(collection: Collection, results: Sequence[CellResult]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Curve -> its points (x, value, lowest, highest), by x: the spread is that over replicates and ranges."""
    plot = collection.table.plot
    assert plot is not None
    found: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for result in results:
        curve = plot.curves.get(result.cell.row) or (result.cell.row if result.cell.row in plot.labels else None)
        xs = [replicate.value_of(collection.own_name(plot.x)) for replicate in result.replicates]
        if curve is not None and xs and not math.isnan(xs[0]):
            found[curve].append((sum(xs) / len(xs), result.mean, *_extent(result)))
    return {curve: sorted(set(values)) for curve, values in found.items()}


def _curves(axes: Axes, collection: Collection, results: Sequence[CellResult]) -> None:
    plot = collection.table.plot
    assert plot is not None
    found = points(collection, results)
    for index, (curve, label) in enumerate(plot.labels.items()):
        if curve not in found:
            continue
        x, y, low, high = zip(*found[curve], strict=True)
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.2}
        axes.errorbar(x, y, yerr=_bars(y, low, high), capsize=2, elinewidth=0.7, label=label, **style)
    printed = _printed(collection, results, plot.x)
    if printed and collection.own_name(collection.table.metric) == collection.table.metric:
        axes.plot(*zip(*printed, strict=True), "k+", markersize=9, label="the paper")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel(plot.x)
    values = [value for curve in found.values() for _, value, *_ in curve]
    if values and min(values) > 0 and max(values) > LOG_ABOVE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(_plain)
        axes.tick_params(axis="y", which="minor", labelsize=7)


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _printed(collection: Collection, results: Sequence[CellResult], x: str) -> list[tuple[float, float]]:
    references: list[Mapping[str, float]] = [result.cell.reference for result in results]
    metric = collection.table.metric
    return sorted({(cell[x], cell[metric]) for cell in references if x in cell and metric in cell})


def _dots(axes: Axes, collection: Collection, results: Sequence[CellResult]) -> None:
    """Ours by row; the paper's beside it, on an axis of its own where its metric is another one."""
    metric = collection.table.metric
    shown = [result for result in results if result.replicates]
    places = {row: index for index, row in enumerate(collection.table.rows)}
    x, y = [places[result.cell.row] for result in shown], [result.mean for result in shown]
    low, high = zip(*(_extent(result) for result in shown), strict=True)
    axes.errorbar(x, y, yerr=_bars(y, low, high), fmt="o", color=COLOURS[0], capsize=2, markersize=5, label="ours")
    printed = [(places[r.cell.row], r.cell.reference[metric]) for r in results if metric in r.cell.reference]
    if printed:
        same = collection.own_name(metric) == metric
        beside = axes if same else axes.twinx()
        beside.plot(*zip(*printed, strict=True), "x", color=COLOURS[1], label="the paper")
        if not same:
            beside.set_ylabel(f"the paper's {metric} (x)", color=COLOURS[1], fontsize=8)
    names = [label if len(label) < 24 else row for row, label in collection.table.rows.items()]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)


def _extent(result: CellResult) -> tuple[float, float]:
    values = [value for replicate in result.replicates for value in (replicate.value, *replicate.over_ranges)]
    return min(values), max(values)


def _bars(y: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    return [
        [max(value - bottom, 0.0) for value, bottom in zip(y, low, strict=True)],
        [max(top - value, 0.0) for value, top in zip(y, high, strict=True)],
    ]


def _label(collection: Collection) -> str:
    several = any(len(r.values) > 1 or r.over_ranges[2] > 1 for r in collection.cells if r.replicates)
    metric = collection.own_name(collection.table.metric)
    return f"{metric} (bars: all ranges, replicates)" if several else metric

"""The training dynamics report: how magnitudes drift over training, of several cells side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repro.training.dynamics import Magnitudes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Mapping[int, Mapping[str, Magnitudes]]
QUANTITIES = {
    "activation": "activations (rms of a layer's output)",
    "weight": "weights (rms of a layer)",
    "relative update": "updates (rms of a step over that of the weights)",
}


def value(quantity: str, found: Magnitudes) -> float:
    """One of `QUANTITIES` of a layer at a step."""
    if quantity == "relative update":
        return found.update / found.weight if found.weight else 0.0
    return float(getattr(found, quantity))


def summary(history: History) -> list[dict[str, Any]]:
    """For each quantity: the median over layers near the start and at the end, their ratio, and the widest layer's.

    The start is the first record after the one at 0 images, where a rate of 0 moves nothing.
    """
    steps = list(history)
    first, last = history[steps[1] if len(steps) > 1 else steps[0]], history[steps[-1]]
    lines = []
    for quantity in QUANTITIES:
        begin = {name: value(quantity, found) for name, found in first.items()}
        end = {name: value(quantity, found) for name, found in last.items()}
        drifts = {name: end[name] / begin[name] for name in begin if begin[name] > 0 and name in end}
        widest = max(drifts, key=lambda name: abs(drifts[name] - 1), default="")
        lines.append(
            {
                "quantity": quantity,
                "start": statistics.median(begin.values()),
                "end": statistics.median(end.values()),
                "drift": statistics.median(drifts.values()) if drifts else float("nan"),
                "spread at the end": max(end.values()) / min(end.values()) if min(end.values()) > 0 else float("inf"),
                "most drifted": widest,
                "its drift": drifts.get(widest, float("nan")),
            }
        )
    return lines


def draw(histories: Mapping[str, History]) -> Figure:
    """A row of panels a quantity, a column a cell; one line a layer, coloured by its place from input to output."""
    import matplotlib
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(4.4 * len(histories), 2.7 * len(QUANTITIES)), layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(histories), squeeze=False, sharey="row")
    colours = matplotlib.colormaps["viridis"]
    for column, (title, history) in enumerate(histories.items()):
        names = list(next(iter(history.values())))
        for row, (quantity, label) in enumerate(QUANTITIES.items()):
            axes = panels[row][column]
            for index, name in enumerate(names):
                points = [
                    (nimg / 1000, value(quantity, found[name])) for nimg, found in history.items() if name in found
                ]
                drawn = [(x, y) for x, y in points if y > 0]
                if drawn:
                    shade = colours(index / max(len(names) - 1, 1))
                    axes.plot(*zip(*drawn, strict=True), color=shade, linewidth=1)
            axes.set_yscale("log")
            axes.grid(True, linewidth=0.3, alpha=0.6)
            if column == 0:
                axes.set_ylabel(label, fontsize=7)
            if row == 0:
                axes.set_title(title, fontsize=9)
            if row == len(QUANTITIES) - 1:
                axes.set_xlabel("kimg")
    shades = matplotlib.cm.ScalarMappable(norm=matplotlib.colors.Normalize(0, 1), cmap=colours)
    bar = figure.colorbar(shades, ax=panels, ticks=[0, 1], shrink=0.5)
    bar.ax.set_yticklabels(["input", "output"], fontsize=8)
    return figure

"""`repro ema`: one training run, sampled with averages of its weights of many lengths."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.cells import Resolved, resolve
from repro.errors import UsageError
from repro.results.collect import collect, mean_and_sd
from repro.tables import load_table
from repro.verbs.computing import computable_cell, compute, first_process
from repro.verbs.plotting import save
from repro.verbs.published import weights_of

POINTS = 9
"""Lengths of a range A..B without a step."""
MOST = 100
"""Lengths of a range: more are a slip of the pen."""


@dataclasses.dataclass(frozen=True)
class Point:
    """The score of one length: its values by replicate, and what is missing."""

    std: float
    metric: str
    values: tuple[float, ...]
    note: str


def run(options: argparse.Namespace) -> int:
    """Reconstruct, score and draw the averages of `--std`."""
    cell = computable_cell(options.cell)
    base = resolve(cell, options.scale, options.gin)
    stds = lengths(options.std)
    if weights_of(options) != "published":  # imported snapshots say themselves what follows from them
        check(base, stds)
    where = compute([cell], options, [[binding(std)] for std in stds])
    if not first_process():
        return 0
    points = []
    for std in stds:
        bindings = [*options.gin, binding(std)]
        (result,) = collect(
            load_table(cell.table), options.scale, where.readable, [cell], bindings, weights_of(options)
        ).cells
        note = "" if result.replicates else "; ".join(result.notes)
        points.append(Point(std, result.metric, tuple(result.values), note))
    if options.json:
        print(json.dumps(as_json(base, points), indent=1))
    else:
        print(text(base, points))
    draw(base, points, options.out or where.runs / f"ema-{cell.name.replace('/', '-')}.{options.scale}.png")
    return 0


def binding(std: float) -> str:
    """What `--gin` says for a length; a guide without a length of its own follows."""
    return f"PostHocEMA.std = {std!r}"


def lengths(words: Sequence[str]) -> list[float]:
    """Increasing lengths from words such as `0.1`, `0.05..0.25` (nine lengths), `0.05..0.25..0.01` (a step) and, as the
    published tools have it, `0.05,0.06,...,0.25`.

    Raises:
        UsageError: a word of another form, a step that does not lead from one end to the other, a length outside of
            (0, 0.2887), which no average has.
    """
    found: set[float] = set()
    parts = [part.strip() for text in words for part in text.split(",")]
    for index, word in enumerate(parts):
        try:
            if word == "...":
                before, first, last = (float(parts[at]) for at in (index - 2, index - 1, index + 1) if at >= 0)
                found.update(_filled(",".join(parts), first, last, first - before))
                continue
            ends = [float(number) for number in word.split("..")]
        except (ValueError, IndexError):
            raise UsageError(f"--std {word!r}: write 0.1, 0.05..0.25, 0.05..0.25..0.01 or 0.05,0.06,...,0.25") from None
        if len(ends) > 3 or (len(ends) > 1 and ends[1] <= ends[0]):
            raise UsageError(f"--std {word!r}: a range is FIRST..LAST or FIRST..LAST..STEP, the first below the last")
        found.update(ends if len(ends) == 1 else _filled(word, *ends))
    for std in found:
        if not 0 < std < 12**-0.5:
            raise UsageError(f"--std {std:g}: the length of an average lies between 0 and {12**-0.5:.4f}")
    return sorted(found)


def _filled(word: str, first: float, last: float, step: float | None = None) -> list[float]:
    if step is not None and not step > 0:
        raise UsageError(f"--std {word!r}: a step is above 0, not {step:g}")
    count = (last - first) / step if step else POINTS - 1
    if not count < MOST:
        raise UsageError(f"--std {word!r}: more than {MOST} lengths, and each is sampled anew; take larger steps")
    if count < 0.5 or abs(count - round(count)) > 1e-4:
        raise UsageError(f"--std {word!r}: steps of {step:g} do not lead from {first:g} to {last:g}")
    return [round(first + (last - first) * i / round(count), 6) for i in range(round(count) + 1)]


def check(base: Resolved, stds: Sequence[float]) -> None:
    """Raise UsageError where the cell has no reconstructed average, or its snapshots do not determine one of `stds`."""
    args = base.evaluation.args["ema"].args
    if base.evaluation.args["ema"].name != "PostHocEMA":
        raise UsageError(
            f"{base.cell.name} has a {base.evaluation.args['ema'].name}: only a PostHocEMA has other lengths"
        )
    import numpy as np

    from repro.training.posthoc import coefficients

    for milestone in base.selection().milestones():
        batch = base.trajectory.args["batch"]
        taken = sorted({math.ceil(time / batch) * batch for time in base.ema().times(milestone)})
        times = np.repeat(np.array(taken, dtype=np.float64), len(args["tracked"]))
        coefficients(times, np.tile(np.array(args["tracked"], dtype=np.float64), len(taken)), list(stds))


def text(base: Resolved, points: Sequence[Point]) -> str:
    """A line a length; the best is marked, and the one of the row."""
    from tabulate import tabulate

    own, best = base.evaluation.args["ema"].args["std"], _best(points)
    rows = []
    for point in points:
        mean, sd = mean_and_sd(point.values)
        spread = "" if math.isnan(sd) else f" ± {sd:.2f} ({len(point.values)})"
        marks = [word for word, true in (("best", point is best), ("the row's", point.std == own)) if true]
        rows.append([f"{point.std:g}", f"{mean:.2f}{spread}" if point.values else point.note, ", ".join(marks)])
    title = f"{base.cell.name} at {base.scale}: averages of all lengths come from one training run's snapshots"
    return f"{title}\n{tabulate(rows, headers=['std', points[0].metric, ''], tablefmt='github', disable_numparse=True)}"


def as_json(base: Resolved, points: Sequence[Point]) -> dict[str, Any]:
    """What `--json` prints."""
    best = _best(points)
    return {
        "cell": base.cell.name,
        "scale": base.scale,
        "metric": points[0].metric,
        "best": best.std if best else None,
        "points": [{"std": point.std, "values": list(point.values), "note": point.note} for point in points],
    }


def draw(base: Resolved, points: Sequence[Point], path: Path) -> None:
    """The curve as PNG and SVG (Karras et al. 2024, figure 5's kind); nothing where no length has a value."""
    from repro.results.plotting import curve

    values = [(point.std, list(point.values)) for point in points if point.values]
    if not values:
        return
    figure = curve(values, "EMA length (std)", points[0].metric, f"{base.cell.name} ({base.scale})")
    save(figure, path)


def _best(points: Sequence[Point]) -> Point | None:
    scored = [point for point in points if point.values]
    return min(scored, key=lambda point: mean_and_sd(point.values)[0], default=None)

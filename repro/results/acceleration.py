"""How much sooner a row reaches the score of another: from the previews that choose a cell's weights (ScaleLong).

The paper says "about 1.5x" and not how it was measured. Here: images that the baseline needs to reach its own best
preview, over those that another row needs to reach the same score, with straight lines between the candidates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from repro.errors import MissingPrerequisite
from repro.results.collect import CellResult, Collection, mean_and_sd

Points = Sequence[tuple[int, float]]
"""(images, score) of candidates, by images."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One cell against the baseline of its column.

    best: mean over seeds of its own best score; images: of each seed, those needed to reach the baseline's best score
    with that seed, nan where it was not reached; ratios: the baseline's images over these, likewise; seeds: theirs.
    """

    row: str
    column: str
    seeds: tuple[int, ...]
    best: float
    images: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def reached(self) -> list[float]:
        """The ratios of the seeds that reached the score."""
        return [ratio for ratio in self.ratios if not math.isnan(ratio)]

    @property
    def mean(self) -> float:
        """Over the seeds that reached it: too good where some did not."""
        return mean_and_sd(self.reached)[0]

    @property
    def sd(self) -> float:
        return mean_and_sd(self.reached)[1]


def images_to_reach(points: Points, score: float) -> float:
    """Images at which a curve first falls to a score, on straight lines between its points; nan where it never does."""
    previous: tuple[int, float] | None = None
    for images, value in points:
        if value <= score:
            if previous is None or not math.isfinite(previous[1]):
                return float(images)
            start, high = previous
            return start + (images - start) * (high - score) / (high - value)
        previous = (images, value)
    return math.nan


def best(points: Points) -> tuple[int, float]:
    """The first of the lowest points."""
    return min(points, key=lambda point: (point[1], point[0]))


def ratios(collection: Collection, baseline: str) -> list[Ratio]:
    """Every cell with curves against its column's baseline, by the seeds that both have.

    Raises:
        MissingPrerequisite: the baseline has no previews in these records.
    """
    found = []
    for column in collection.table.columns:
        results = [result for result in collection.cells if result.cell.column == column]
        reference = next((result for result in results if result.cell.row == baseline), None)
        if reference is not None and any(replicate.curve for replicate in reference.replicates):
            found += [_against(reference, result) for result in results if any(r.curve for r in result.replicates)]
    if not found:
        raise MissingPrerequisite(
            f"no record of a preview of row {baseline} of {collection.table.name} at {collection.scale}: "
            f"`repro reproduce {collection.table.name} --scale {collection.scale}` makes them"
        )
    return found


def _against(reference: CellResult, result: CellResult) -> Ratio:
    curves = {r.seed: r.curve for r in reference.replicates if r.curve}
    own = {r.seed: r.curve for r in result.replicates if r.curve}
    seeds = tuple(sorted(curves.keys() & own.keys()))
    images, shares = [], []
    for seed in seeds:
        at, score = best(curves[seed])
        images.append(images_to_reach(own[seed], score))
        shares.append(at / images[-1])
    lowest = [best(own[seed])[1] for seed in seeds]
    cell = result.cell
    return Ratio(cell.row, cell.column, seeds, mean_and_sd(lowest)[0], tuple(images), tuple(shares))

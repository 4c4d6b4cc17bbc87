"""Precision and recall of generated images (Kynkaanniemi et al. 2019): manifolds as unions of balls around features.

The radius of a ball is the distance to the k-th nearest other point of its own set; membership is inclusive. All in
float64: a comparison that rounding could decide either way is decided by the plain difference of the two points, which
is the same number whichever set a point is in, so that ties are ties. (The ADM suite computes squared distances in
float16, so that its published values have noise in the third decimal.)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from repro.metrics.frechet import Array
from repro.metrics.kernel import checked_pair

ROWS = 2000
CLOSE = 1e-9
"""Relative to the squared norms: nearer comparisons are recomputed from plain differences."""

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1; f_score is their harmonic mean."""

    precision: float
    recall: float

    @property
    def f_score(self) -> float:
        return 2 * self.precision * self.recall / max(1e-5, self.precision + self.recall)


def precision_recall(
    generated: npt.ArrayLike, reference: npt.ArrayLike, neighbours: int = 3, rows: int = ROWS
) -> PrecisionRecall:
    """Precision: the share of generated points in the manifold of the reference; recall: the other way round.

    Args:
        generated, reference: features (n, d); more than `neighbours` of each.
        neighbours: k.
        rows: points a block; changes memory (rows x n float64), never the result.

    Raises:
        ValueError: features of different d, not finite, or too few.
    """
    x, y = checked_pair(generated, reference)
    radii_x, radii_y = (squared_radii(values, neighbours, rows) for values in (x, y))
    return PrecisionRecall(
        precision=float(inside(x, y, radii_y, rows).mean()), recall=float(inside(y, x, radii_x, rows).mean())
    )


def squared_radii(points: Array, neighbours: int, rows: int = ROWS) -> Array:
    """(n,) squared distance of each point to its k-th nearest other point, the point itself being number 0."""
    if not 0 < neighbours < len(points):
        raise ValueError(f"{len(points)} points have no {neighbours} nearest others each")
    radii = []
    for start in range(0, len(points), rows):
        block = points[start : start + rows]
        distances = squared_distances(block, points)
        nearest = np.argpartition(distances, neighbours, axis=1)[:, : neighbours + 1]
        # rounding may have exchanged near neighbours: take all that are as near as the k-th, by plain differences
        limit = np.take_along_axis(distances, nearest, axis=1).max(axis=1)
        scale = CLOSE * _norms(block, points)
        candidates = distances <= (limit + scale)[:, None]
        for row, mask in enumerate(candidates):
            exact = np.sort(((points[mask] - block[row]) ** 2).sum(axis=1))
            radii.append(exact[neighbours])
    return np.array(radii)


def inside(points: Array, centres: Array, squared: Array, rows: int = ROWS) -> Mask:
    """(n,) whether each point lies in the ball of any centre; squared: (m,) squared radii."""
    found = []
    for start in range(0, len(points), rows):
        block = points[start : start + rows]
        distances = squared_distances(block, centres)
        scale = CLOSE * _norms(block, centres)[:, None]
        surely: Mask = np.any(distances < squared - scale, axis=1)
        doubtful = (np.abs(distances - squared) <= scale) & ~surely[:, None]
        for row in np.flatnonzero(doubtful.any(axis=1)):
            mask = doubtful[row]
            exact = ((centres[mask] - block[row]) ** 2).sum(axis=1)
            surely[row] = bool((exact <= squared[mask]).any())
        found.append(surely)
    return np.concatenate(found)


def squared_distances(x: Array, y: Array) -> Array:
    """(n, m) of points (n, d) and (m, d), by |x|^2 - 2 x.y + |y|^2, not below 0."""
    squares = (x**2).sum(axis=1)[:, None] - 2 * (x @ y.T) + (y**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(squares, 0))


def _norms(block: Array, points: Array) -> Array:
    """(n,) the size of the numbers whose rounding decides: |x|^2 + max |y|^2."""
    return np.asarray((block**2).sum(axis=1) + (points**2).sum(axis=1).max())

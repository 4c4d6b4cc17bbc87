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

ROWS = 250
COLUMNS = 4096
CLOSE = 1e-9
"""Relative to the squared norms: nearer comparisons are recomputed from plain differences."""

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.floating]


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
        generated, reference: features (n, d), kept in their own type; more than `neighbours` of each.
        neighbours: k.
        rows: points a block; changes memory (two matrices of rows x n, 8 bytes each), never the result.

    Raises:
        ValueError: features of different d, not finite, or too few.
    """
    x, y = (_checked(values) for values in (generated, reference))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, d) of one d, not {x.shape} and {y.shape}")
    radii_x, radii_y = (squared_radii(values, neighbours, rows) for values in (x, y))
    return PrecisionRecall(
        precision=float(inside(x, y, radii_y, rows).mean()), recall=float(inside(y, x, radii_x, rows).mean())
    )


def squared_radii(points: Points, neighbours: int, rows: int = ROWS) -> Array:
    """(n,) squared distance of each point to its k-th nearest other point, the point itself being number 0."""
    if not 0 < neighbours < len(points):
        raise ValueError(f"{len(points)} points have no {neighbours} nearest others each")
    norms = _squared_norms(points)
    radii = []
    for start in range(0, len(points), rows):
        block = points[start : start + rows].astype(np.float64)
        distances = squared_distances(block, points, norms)
        # rounding may have exchanged near neighbours: take all that are as near as the k-th, by plain differences
        limit = np.partition(distances, neighbours, axis=1)[:, neighbours] + _close(norms[start : start + rows], norms)
        for row, values in enumerate(distances):
            radii.append(np.sort(_exact(block[row], points, values <= limit[row]))[neighbours])
    return np.array(radii)


def inside(points: Points, centres: Points, squared: Array, rows: int = ROWS) -> Mask:
    """(n,) whether each point lies in the ball of any centre; squared: (m,) squared radii."""
    norms, own = _squared_norms(centres), _squared_norms(points)
    found = []
    for start in range(0, len(points), rows):
        block = points[start : start + rows].astype(np.float64)
        margin = squared_distances(block, centres, norms) - squared
        doubt = _close(own[start : start + rows], norms)[:, None]
        surely: Mask = np.any(margin < -doubt, axis=1)
        for row in np.flatnonzero(~surely & np.any(np.abs(margin) <= doubt, axis=1)):
            mask = np.abs(margin[row]) <= doubt[row]
            surely[row] = bool((_exact(block[row], centres, mask) <= squared[mask]).any())
        found.append(surely)
    return np.concatenate(found)


def squared_distances(block: Array, points: Points, norms: Array) -> Array:
    """(n, m) of points (n, d) and (m, d) with squared norms (m,), by |x|^2 - 2 x.y + |y|^2, not below 0."""
    result = np.empty((len(block), len(points)))
    for start in range(0, len(points), COLUMNS):
        part = slice(start, start + COLUMNS)
        result[:, part] = block @ points[part].astype(np.float64).T
    result *= -2
    result += norms
    result += (block**2).sum(axis=1)[:, None]
    return np.maximum(result, 0, out=result)


def _exact(point: Array, points: Points, mask: Mask) -> Array:
    return np.asarray(((points[mask].astype(np.float64) - point) ** 2).sum(axis=1))


def _squared_norms(points: Points) -> Array:
    starts = range(0, len(points), COLUMNS)
    return np.concatenate([(points[s : s + COLUMNS].astype(np.float64) ** 2).sum(axis=1) for s in starts])


def _close(own: Array, others: Array) -> Array:
    """(n,) what rounding can move a squared distance by, amply."""
    return np.asarray(CLOSE * (own + others.max()))


def _checked(features: npt.ArrayLike) -> Points:
    values = np.asarray(features)
    if values.ndim != 2:
        raise ValueError(f"features must be (n, d) of one d, not {values.shape}")
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features are not finite")
    return values

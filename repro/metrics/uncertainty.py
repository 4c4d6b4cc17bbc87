"""How much a Frechet distance of n samples wobbles, and where it would end with infinitely many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from repro.metrics.frechet import Array, Moments, frechet_distance, root
from repro.metrics.moments import StreamedMoments

BLOCKS = 50
EXTRAPOLATION_POINTS = 15
SMALLEST_SHARE = 0.1


def jackknife_error(features: npt.ArrayLike, mu: Array, sigma: Array, blocks: int = BLOCKS) -> float:
    """Standard error of the Frechet distance of some features to fixed statistics: delete-one-block jackknife.

    The bootstrap is not used: its duplicates act as fewer samples and lift the distance.

    Args:
        features: (n, d), in the order of their images; blocks of consecutive ones are left out in turn.
        mu, sigma: (d,), (d, d) statistics of the reference, taken as known.
        blocks: number of blocks; fewer where there are not two features each.

    Returns:
        the standard error; nan with fewer than four features.

    Raises:
        ValueError: features that are not finite, or of another d than the statistics.
    """
    values = np.asarray(features, dtype=np.float64)
    blocks = min(blocks, len(values) // 2)
    if blocks < 2:
        return math.nan
    parts = [_moments(part) for part in np.array_split(values, blocks)]
    whole = StreamedMoments()
    for part in parts:
        whole.merge(part)
    rests = [_rest(whole, parts, k) for k in range(blocks)]
    reference_root = root(sigma)
    distances = np.array([_distance(rest, mu, sigma, reference_root) for rest in rests])
    return float(np.sqrt((blocks - 1) / blocks * ((distances - distances.mean()) ** 2).sum()))


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """FD at n -> infinity, its slope in 1/n, and what the line was fitted to."""

    intercept: float
    slope: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolated_distance(
    features: npt.ArrayLike,
    mu: Array,
    sigma: Array,
    *,
    points: int = EXTRAPOLATION_POINTS,
    smallest: float = SMALLEST_SHARE,
    seed: int = 0,
) -> Extrapolation:
    """FD_inf: the intercept of a least-squares line of FD in 1/N (Chong and Forsyth 2019).

    Args:
        features: (n, d).
        mu, sigma: statistics of the reference.
        points: numbers of samples, evenly spaced from `smallest` n to n; each a random subset without replacement.
        smallest: share of n below which the law c/N does not hold yet.
        seed: of the subsets.

    Raises:
        ValueError: fewer than two points, or a smallest subset of fewer than two features.
    """
    values = np.asarray(features, dtype=np.float64)
    counts = np.unique(np.linspace(smallest * len(values), len(values), points).round().astype(int))
    if len(counts) < 2 or counts[0] < 2:
        raise ValueError(f"{len(values)} features are too few to extrapolate from {points} subsets")
    rng = np.random.Generator(np.random.Philox(key=seed))
    distances = []
    for count in counts:
        chosen = np.sort(rng.permutation(len(values))[:count])
        part = _moments(values[chosen])
        distances.append(frechet_distance(part.mean, part.covariance, mu, sigma))
    slope, intercept = line(1 / counts, np.array(distances))
    return Extrapolation(intercept, slope, tuple(int(c) for c in counts), tuple(distances))


def line(x: Sequence[float] | Array, y: Sequence[float] | Array) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    dx = np.asarray(x) - np.mean(x)
    slope = float(dx @ (np.asarray(y) - np.mean(y)) / (dx @ dx))
    return slope, float(np.mean(y) - slope * np.mean(x))


def _moments(features: Array) -> StreamedMoments:
    moments = StreamedMoments()
    moments.update(features)
    return moments


def _rest(whole: StreamedMoments, parts: list[StreamedMoments], left_out: int) -> Moments:
    if whole.exact:
        return whole.without(parts[left_out]).as_moments()
    rest = Moments()
    for index, part in enumerate(parts):
        if index != left_out:
            rest.merge(part.as_moments())
    return rest


def _distance(moments: Moments, mu: Array, sigma: Array, reference_root: Array) -> float:
    """The distance from the eigenvalues of R2^T S1 R2: four times cheaper than singular values, to 1e-7."""
    product = reference_root.T @ moments.covariance @ reference_root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    delta = moments.mean - mu
    trace = np.trace(moments.covariance) + np.trace(sigma)
    return float(delta @ delta + trace - 2 * np.sqrt(np.maximum(values, 0)).sum())

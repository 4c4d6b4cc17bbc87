"""Mean and covariance of streamed features: the same bits for any batch size, order of arrival and number of ranks.

Each feature f is split on two fixed grids, f = a + b, a a multiple of 2^-14 and b of 2^-32, |b| <= 2^-15 (what lies
below is dropped: at most 1.2e-10, and nothing of a float32 above 2^-8). Every product a a^T, a b^T, b b^T is then a
multiple of a fixed power of two, and as long as the sums stay below 2^53 such multiples, float64 sums are exact, matrix
products included, hence independent of order. Mean and covariance are taken from the exact sums in double-double
arithmetic, so that a mean that is large beside the spread costs no digits.

Where the bound n max|f|^2 2^28 <= 2^53 does not hold, or all features of a batch lie below 1/4, where what is dropped
would show (those of Inception and of the digits' network exceed 1 in every image), `StreamedMoments` goes on with the
mergeable form of `repro.metrics.frechet.Moments`, which is as accurate but depends on the order in the last bits;
`exact` says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from repro.metrics.frechet import Array, Moments

COARSE, FINE = 2.0**14, 2.0**32
"""Steps a unit of the two grids."""
SMALLEST = 0.25
"""The largest feature of a batch, below which its sums are not taken on the grids."""
ROWS = 256
LIMIT = 2.0**53
"""The largest number of grid steps that a float64 sum holds exactly."""


class StreamedMoments:
    """Mean and covariance of features that arrive in any order, in any batches, in any number of parts.

    Memory: three matrices of d x d float64 (101 MB at d = 2048), however many features; `update` takes as much again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._sums: tuple[Array, ...] | None = None  # sum a, sum b, sum aa, sum ab, sum bb
        self._merged: Moments | None = None

    @property
    def exact(self) -> bool:
        """Whether the bits are independent of order; False once the bound was exceeded."""
        return self._merged is None

    def update(self, features: npt.ArrayLike) -> None:
        """Add features (n, d), any float type.

        Raises:
            ValueError: not two-dimensional, another d than before, or a value that is not finite.
        """
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2:
            raise ValueError(f"features must be (n, d), not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("features are not finite")
        if len(values) == 0:
            return
        part = StreamedMoments()
        part.count, part.largest = len(values), float(np.abs(values).max())
        if within_bound(part.count, part.largest) and (part.largest >= SMALLEST or part.largest == 0):
            part._sums = _exact_sums(values)
        else:
            part._merged = Moments()
            part._merged.update(values)
        self.merge(part)

    def merge(self, other: StreamedMoments) -> None:
        """Add all that `other` has seen; `other` stays as it is.

        Raises:
            ValueError: the feature dimensions differ.
        """
        if other.count == 0:
            return
        if self.count and self.dim != other.dim:
            raise ValueError(f"feature dimensions differ: {self.dim} and {other.dim}")
        count, largest = self.count + other.count, max(self.largest, other.largest)
        if self.exact and other.exact and within_bound(count, largest):
            theirs = other._sums or ()
            if self._sums is None:
                self._sums = tuple(y.copy() for y in theirs)
            else:  # in place: at d = 2048 every matrix is 34 MB
                for x, y in zip(self._sums, theirs, strict=True):
                    x += y
        else:
            merged = self.as_moments()
            merged.merge(other.as_moments())
            self._merged, self._sums = merged, None
        self.count, self.largest = count, largest

    def without(self, part: StreamedMoments) -> StreamedMoments:
        """What is left when features that were added before are taken out again (exact sums only).

        Raises:
            ValueError: one of the two is not exact.
        """
        if self._sums is None or part._sums is None:
            raise ValueError("only exact sums can be subtracted")
        rest = StreamedMoments()
        rest.count, rest.largest = self.count - part.count, self.largest
        rest._sums = tuple(x - y for x, y in zip(self._sums, part._sums, strict=True))
        return rest

    def as_moments(self) -> Moments:
        """The state in the mergeable form."""
        if self._merged is not None:
            copy = Moments()
            copy.merge(self._merged)
            return copy
        if self._sums is None:
            return Moments()
        return Moments.from_state(self.count, self.mean, _scatter(self.count, self._sums))

    @property
    def dim(self) -> int:
        """d. Raises ValueError before the first feature."""
        return len(self.mean)

    @property
    def mean(self) -> Array:
        """(d,) float64. Raises ValueError before the first feature."""
        if self._merged is not None:
            return self._merged.mean
        if self._sums is None:
            raise ValueError("no features yet")
        return np.asarray((self._sums[0] + self._sums[1]) / self.count)

    @property
    def covariance(self) -> Array:
        """(d, d) float64, divisor count - 1. Raises ValueError with fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, not {self.count}")
        return self.as_moments().covariance


def within_bound(count: int, largest: float) -> bool:
    """Whether sums of `count` products of features up to `largest` in magnitude are exact on the grids."""
    top = largest + 1 / COARSE
    coarse = count * top**2 * COARSE**2
    mixed = count * top * 0.5 * FINE  # |b| is half a coarse step
    return coarse <= LIMIT and mixed <= LIMIT


def _exact_sums(values: Array) -> tuple[Array, ...]:
    a = np.rint(values * COARSE) / COARSE
    b = np.rint((values - a) * FINE) / FINE
    return a.sum(axis=0), b.sum(axis=0), a.T @ a, a.T @ b, b.T @ b


def _scatter(count: int, sums: tuple[Array, ...]) -> Array:
    """sum (f - mean)(f - mean)^T from exact sums, rounded once at the end: double-double arithmetic (Dekker 1971)."""
    result = np.empty_like(sums[2])
    for start in range(0, len(result), ROWS):
        rows = slice(start, start + ROWS)
        result[rows] = _scatter_rows(count, sums, rows)
    result += result.T.copy()
    result /= 2
    return result


def _scatter_rows(count: int, sums: tuple[Array, ...], rows: slice) -> Array:
    a, b, aa, ab, bb = sums
    high, low = _two_sum(aa[rows], ab[rows] + ab[:, rows].T)
    low = low + bb[rows]  # below 2^-28 of the rest: its own rounding does not matter
    total_high, total_low = _two_sum(a, b)
    product, error = _two_product(total_high[rows, None], total_high[None, :])
    error = error + (total_high[rows, None] * total_low[None, :] + total_low[rows, None] * total_high[None, :])
    quotient = product / count
    back, rest = _two_product(quotient, np.float64(count))
    remainder = ((product - back) - rest + error) / count
    difference, lost = _two_sum(high, -quotient)
    return np.asarray(difference + (lost + (low - remainder)))


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """x + y = sum + error, exactly (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _two_product(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64] | np.float64) -> tuple[Array, Array]:
    """x y = product + error, exactly (Dekker, with Veltkamp's splitting)."""
    product = x * y
    x1, x2 = _split(x)
    y1, y2 = _split(np.asarray(y))
    return product, np.asarray(((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2)


def _split(x: npt.NDArray[np.float64]) -> tuple[Array, Array]:
    wide = x * 134217729.0  # 2^27 + 1
    high = wide - (wide - x)
    return high, x - high

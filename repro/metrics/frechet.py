"""Frechet distance of two Gaussians, and the moments that it needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ASYMMETRY = 1e-5
"""Largest difference of a covariance from its transpose, relative to its largest entry: float32 files reach 1e-7."""


def frechet_distance(mu1: npt.ArrayLike, sigma1: npt.ArrayLike, mu2: npt.ArrayLike, sigma2: npt.ArrayLike) -> float:
    """Squared Frechet distance |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) (Heusel et al. 2017, equation 6).

    With S = R R^T the last trace is the sum of the singular values of R1^T R2: no root of a non-symmetric matrix, exact
    also for singular covariances. Nothing is added to the diagonals; a tiny negative result is returned as it is.

    Args:
        mu1, mu2: (d,) means.
        sigma1, sigma2: (d, d) covariances, symmetric and positive semi-definite up to rounding.

    Raises:
        ValueError: shapes that do not match, a value that is not finite, a covariance that is not symmetric.
    """
    m1, s1 = _checked(mu1, sigma1, "first")
    m2, s2 = _checked(mu2, sigma2, "second")
    if m1.shape != m2.shape:
        raise ValueError(f"feature dimensions differ: {len(m1)} and {len(m2)}")
    delta = m1 - m2
    return float(delta @ delta + np.trace(s1) + np.trace(s2) - 2 * trace_sqrt(s1, s2))


def trace_sqrt(sigma1: Array, sigma2: Array) -> float:
    """tr (S1 S2)^(1/2) of two covariances (d, d): the sum of the singular values of R1^T R2."""
    return float(np.linalg.svd(root(sigma1).T @ root(sigma2), compute_uv=False).sum())


class Moments:
    """Mean and covariance of features that arrive in batches, in any number of parts.

    The state (count, mean, M2 = sum of (f - mean)(f - mean)^T) is float64; two states merge without loss also when the
    mean is large beside the spread (Chan, Golub and LeVeque 1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Array | None = None
        self._m2: Array | None = None

    @classmethod
    def from_state(cls, count: int, mean: Array, m2: Array) -> Moments:
        """Moments of a known state. count >= 1; mean (d,); m2 (d, d), the sum of (f - mean)(f - mean)^T."""
        moments = cls()
        moments.count, moments._mean, moments._m2 = count, mean, m2
        return moments

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
        part = Moments()
        part.count = len(values)
        part._mean = values.mean(axis=0)
        centred = values - part._mean
        part._m2 = centred.T @ centred
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Add all that `other` has seen; `other` stays as it is.

        Raises:
            ValueError: the feature dimensions differ.
        """
        if other._mean is None or other._m2 is None:
            return
        if self._mean is None or self._m2 is None:
            self.count, self._mean, self._m2 = other.count, other._mean.copy(), other._m2.copy()
            return
        if self._mean.shape != other._mean.shape:
            raise ValueError(f"feature dimensions differ: {len(self._mean)} and {len(other._mean)}")
        count = self.count + other.count
        delta = other._mean - self._mean
        self._mean = self._mean + delta * (other.count / count)
        self._m2 = self._m2 + other._m2 + np.outer(delta, delta) * (self.count * other.count / count)
        self.count = count

    @property
    def mean(self) -> Array:
        """(d,) float64. Raises ValueError before the first feature."""
        if self._mean is None:
            raise ValueError("no features yet")
        return self._mean

    @property
    def covariance(self) -> Array:
        """(d, d) float64, divisor count - 1. Raises ValueError with fewer than two features."""
        if self._m2 is None or self.count < 2:
            raise ValueError(f"a covariance needs two features or more, not {self.count}")
        return self._m2 / (self.count - 1)


def _checked(mu: npt.ArrayLike, sigma: npt.ArrayLike, which: str) -> tuple[Array, Array]:
    mean, covariance = np.asarray(mu, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{which} statistics: mean {mean.shape} and covariance {covariance.shape} do not belong together"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{which} statistics are not finite")
    if np.abs(covariance - covariance.T).max(initial=0) > ASYMMETRY * np.abs(covariance).max(initial=0):
        raise ValueError(f"{which} statistics: the covariance is not symmetric")
    return mean, covariance


def root(sigma: Array) -> Array:
    """R (d, d) with sigma = R R^T. Negative eigenvalues are rounding and become 0; small ones stay, all of them."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), dtype=np.float64)

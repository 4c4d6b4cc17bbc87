"""Jackknife error bars and extrapolation, against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repro.metrics.frechet import Array, frechet_distance
from repro.metrics.moments import StreamedMoments
from repro.metrics.uncertainty import extrapolated_distance, jackknife_error, line

D = 6
MU, SIGMA = np.zeros(D), np.eye(D)


def sample(n: int, seed: int, shift: float = 0.5) -> Array:
    return np.asarray((np.random.default_rng(seed).standard_normal((n, D)) + shift).astype(np.float32))


def distance(features: Array) -> float:
    moments = StreamedMoments()
    moments.update(features)
    return frechet_distance(moments.mean, moments.covariance, MU, SIGMA)


def test_jackknife_is_the_spread_over_repeats() -> None:
    spread = np.std([distance(sample(500, seed)) for seed in range(200)])
    errors = [jackknife_error(sample(500, 1000 + seed), MU, SIGMA) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.2)


def test_jackknife_equals_recomputation() -> None:
    values = sample(60, 0)
    parts = np.array_split(np.arange(60), 10)
    left = np.array([distance(np.delete(values, part, axis=0)) for part in parts])
    wanted = math.sqrt(0.9 * ((left - left.mean()) ** 2).sum())
    assert jackknife_error(values, MU, SIGMA, blocks=10) == pytest.approx(wanted, rel=1e-6)
    large = values + np.float32(5000)  # beyond the bound of exact sums
    mu = MU + 5000
    assert jackknife_error(large, mu, SIGMA, blocks=10) == pytest.approx(wanted, rel=0.02)
    assert math.isnan(jackknife_error(values[:3], MU, SIGMA))


def test_extrapolation_removes_the_bias_of_few_samples() -> None:
    """Equal distributions: the truth is 0; FD of 400 samples is far above it, the intercept is near it."""
    found = [extrapolated_distance(sample(400, seed, 0.0), MU, SIGMA, seed=seed) for seed in range(40)]
    intercepts = np.array([f.intercept for f in found])
    whole = np.array([f.distances[-1] for f in found])
    error = intercepts.std() / math.sqrt(len(found))
    assert whole.mean() > 5 * error and abs(intercepts.mean()) < 4 * error
    assert found[0].counts[0] == 40 and found[0].counts[-1] == 400 and len(found[0].counts) == 15
    assert extrapolated_distance(sample(400, 0), MU, SIGMA) == extrapolated_distance(sample(400, 0), MU, SIGMA)
    with pytest.raises(ValueError, match="too few"):
        extrapolated_distance(sample(5, 0), MU, SIGMA)


def test_line_by_hand() -> None:
    assert line([0, 1, 2], [1, 3, 5]) == (pytest.approx(2), pytest.approx(1))

"""Kernel distance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repro.metrics.kernel import gaussian, jackknife_error, kernel_distance, polynomial, unbiased_mmd


def test_unbiased_mmd_by_hand() -> None:
    """Linear kernel, d = 1: x = 1, 3; y = 0, 2. Within: 3 and 0; cross mean (0 + 2 + 0 + 6) / 4 = 2."""
    linear = polynomial(degree=1, gamma=1.0, coef0=0.0)
    x, y = np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]])
    assert unbiased_mmd(x, y, linear) == pytest.approx(3 + 0 - 2 * 2)


def test_kernels_by_hand() -> None:
    x, y = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert polynomial()(x, y).item() == pytest.approx(1.5**3)
    assert gaussian(2.0)(x, y).item() == pytest.approx(math.exp(-13 / 8))


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 2.0), (0.5, 0.8, 1.25)])
def test_mean_is_unbiased_and_the_error_is_the_spread_over_repeats(shift: float, low: float, high: float) -> None:
    """For equal distributions the estimate is degenerate and the jackknife errs on the safe side, by less than two."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(100):
        x, y = rng.standard_normal((300, 8)) + shift, rng.standard_normal((300, 8))
        scores.append(kernel_distance(x, y, subsets=1, subset_size=300))
    values, errors = (np.array([getattr(score, name) for score in scores]) for name in ("mean", "error"))
    if shift == 0:
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert low < np.median(errors) / values.std() < high


def test_disjoint_enough_subsets_give_the_error_of_their_mean() -> None:
    rng = np.random.default_rng(1)
    score = kernel_distance(rng.standard_normal((1000, 4)), rng.standard_normal((1000, 4)), subsets=4, subset_size=100)
    assert score.error == pytest.approx(score.std / 2)


def test_jackknife_equals_recomputation() -> None:
    rng = np.random.default_rng(2)
    x, y, kernel = rng.standard_normal((40, 3)), rng.standard_normal((60, 3)) + 1, polynomial()
    variance = 0.0
    for own in (0, 1):
        values = []
        for part in np.array_split(np.arange((40, 60)[own]), 5):
            sets = [x, y]
            sets[own] = np.delete(sets[own], part, axis=0)
            values.append(unbiased_mmd(sets[0], sets[1], kernel))
        variance += 4 * np.var(values)
    assert jackknife_error(x, y, kernel, blocks=5) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert math.isnan(jackknife_error(x[:3], y, kernel))


def test_bad_sets() -> None:
    x = np.zeros((10, 2))
    for other, options, message in (
        (np.zeros((10, 3)), {}, "one d"),
        (np.full((10, 2), np.nan), {}, "finite"),
        (x, {"subset_size": 11}, "cannot be drawn"),
        (x, {"subsets": 0, "subset_size": 5}, "cannot be drawn"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_distance(x, other, **options)

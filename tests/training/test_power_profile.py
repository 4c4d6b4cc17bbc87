"""Power-function averages: their mathematics against integrals, sums and the paper's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import UsageError
from repro.training import power_profile
from repro.training.power_profile import gamma_from_std, inner_products, profile_errors, solve_coefficients

WIDTHS = st.floats(0.01, 0.28)


def snapshot_times(count: int, interval: float, stds: tuple[float, ...] = (0.05, 0.1)) -> tuple[np.ndarray, np.ndarray]:
    """Ends and widths of `count` snapshots of each of some averages."""
    times = np.arange(1, count + 1) * float(interval)
    return np.repeat(times, len(stds)), np.tile(np.array(stds), count)


@pytest.mark.parametrize("std, gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(std: float, gamma: float) -> None:
    assert gamma_from_std(std) == pytest.approx(gamma, abs=0.005)


@given(WIDTHS)
def test_width_and_exponent_are_inverse(std: float) -> None:
    assert power_profile.std_from_gamma(gamma_from_std(std)) == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 0.5, float("nan")])
def test_widths_that_no_profile_has(std: float) -> None:
    with pytest.raises(UsageError, match="above 0 and below 0.2887"):
        gamma_from_std(std)


@given(WIDTHS, st.integers(2, 400))
def test_updates_add_up_to_the_profile(std: float, steps: int) -> None:
    """The weight that step i has after n steps is i^(gamma + 1) - (i - 1)^(gamma + 1) over n^(gamma + 1)."""
    gamma = gamma_from_std(std)
    weights = np.zeros(steps)
    for i in range(1, steps + 1):
        beta = power_profile.power_beta(gamma, i * 512.0, 512.0)
        weights *= beta
        weights[i - 1] += 1 - beta
    ends = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(ends), atol=1e-9)


@settings(max_examples=30)
@given(WIDTHS, WIDTHS, st.floats(0.1, 3.0))
def test_inner_products_are_integrals(std_a: float, std_b: float, t_b: float) -> None:
    gamma_a, gamma_b = gamma_from_std(std_a), gamma_from_std(std_b)
    end = min(1.0, t_b)
    tau = (np.arange(200_000) + 0.5) / 200_000 * end
    product = (gamma_a + 1) * tau**gamma_a * (gamma_b + 1) / t_b * (tau / t_b) ** gamma_b
    found = inner_products(np.array(1.0), np.array(gamma_a), np.array(t_b), np.array(gamma_b))
    np.testing.assert_allclose(found, product.mean() * end, rtol=1e-5)
    swapped = inner_products(np.array(t_b), np.array(gamma_b), np.array(1.0), np.array(gamma_a))
    np.testing.assert_allclose(found, swapped, rtol=1e-12)


def test_a_stored_profile_is_itself() -> None:
    times, stds = snapshot_times(16, 1e6)
    matrix = solve_coefficients(times, stds, np.array([times[-1]]), np.array([0.05]))
    expected = np.zeros((32, 1))
    expected[30] = 1
    np.testing.assert_allclose(matrix, expected, atol=1e-8)


@pytest.mark.parametrize("count, interval_mi, limit", [(256, 8, 0.003), (64, 32, 0.025)])
def test_published_snapshots_determine_the_papers_range(count: int, interval_mi: int, limit: float) -> None:
    """Reliable from 0.015 to 0.250, with the snapshots of training and with the published quarter of them."""
    times, stds = snapshot_times(count, interval_mi * 2.0**20)
    targets = np.arange(15, 251) / 1000
    assert profile_errors(times, stds, np.full(len(targets), times[-1]), targets).max() <= limit


def test_range_is_where_the_error_is_small() -> None:
    times, stds = snapshot_times(12, 40960)
    found = power_profile.reliable_range(times, stds, times[-1], 0.025)
    assert found is not None
    low, high = found
    ends = np.full(4, times[-1])
    errors = profile_errors(times, stds, ends, np.array([low - 0.001, low, high, high + 0.001]))
    assert (errors <= 0.025).tolist() == [False, True, True, False]
    assert low < 0.05 and high > 0.1


def test_no_range() -> None:
    times, stds = snapshot_times(1, 1000.0, (0.0501234,))
    assert power_profile.reliable_range(times, stds, 1000.0, 1e-6) is None


def test_response_of_a_profile() -> None:
    weights = power_profile.response(0.1, 40.0, 64)
    assert weights.shape == (64,) and weights.sum() == pytest.approx(1)
    assert not weights[41:].any() and weights[40] == weights.max()
    steps = np.arange(64)
    mean = (weights * steps).sum()
    assert np.sqrt((weights * (steps - mean) ** 2).sum()) / 40 == pytest.approx(0.1, rel=0.05)

"""Noise schedules and time steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.diffusion import schedules


@settings(deadline=None, max_examples=50)
@given(
    steps=st.integers(2, 60),
    low=st.floats(1e-3, 1.0),
    ratio=st.floats(1.5, 1e4),
    rho=st.floats(1.0, 10.0),
)
def test_levels_fall_from_max_to_min(steps: int, low: float, ratio: float, rho: float) -> None:
    high = low * ratio
    for sigmas in (schedules.edm_sigmas(steps, low, high, rho), schedules.ve_sigmas(steps, low, high)):
        assert sigmas.dtype == torch.float64
        assert sigmas.shape == (steps,)
        assert (sigmas.diff() < 0).all()
        assert sigmas[0].item() == pytest.approx(high)
        assert sigmas[-1].item() == pytest.approx(low)


def test_edm_steps_by_hand() -> None:
    assert schedules.edm_sigmas(3, 1.0, 9.0, rho=1).tolist() == pytest.approx([9, 5, 1])
    assert schedules.edm_sigmas(3, 1.0, 9.0, rho=2).tolist() == pytest.approx([9, 4, 1])


def test_ve_steps_are_geometric() -> None:
    assert schedules.ve_sigmas(3, 1.0, 100.0).tolist() == pytest.approx([100, 10, 1])


def test_vp_times() -> None:
    assert schedules.vp_times(3, 0.5).tolist() == pytest.approx([1, 0.75, 0.5])


def test_vp_sigma_and_inverse() -> None:
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    sigma = schedules.vp_sigma(t)
    assert sigma[-1].item() == pytest.approx(math.sqrt(math.exp(19.9 / 2 + 0.1) - 1))
    assert torch.allclose(schedules.vp_sigma_inverse(sigma), t)


def test_vp_derivative_is_the_slope() -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    h = 1e-6
    slope = (schedules.vp_sigma(t + h) - schedules.vp_sigma(t - h)) / (2 * h)
    assert torch.allclose(schedules.vp_sigma_derivative(t), slope, rtol=1e-6)


def test_vp_constants_of_the_default_range() -> None:
    low, high = schedules.vp_sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    assert schedules.vp_constants(low, high) == pytest.approx((19.9, 0.1))


def test_iddpm_table() -> None:
    u = schedules.iddpm_u()
    assert u.dtype == torch.float32
    assert u[1000].item() == 0
    assert (u.diff() < 0).all()
    assert u[:4].tolist() == pytest.approx([20291.17, 642, 321, 214], rel=2e-3)
    assert u[8].item() == pytest.approx(80.2, abs=0.05)
    assert u[999].item() == pytest.approx(0.00642234, rel=1e-3)


def test_iddpm_steps_start_at_j0_8() -> None:
    """With sigma_max 81 the published rule skips the first eight levels (Table 1, j_0 = 8)."""
    u = schedules.iddpm_u(dtype=torch.float64)
    sigmas = schedules.iddpm_sigmas(10, 0.002, 81.0)
    index = [math.floor(8 + (999 - 8) / 9 * i + 0.5) for i in range(10)]
    assert torch.equal(sigmas, u[index])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        schedules.edm_sigmas(1, 0.002, 80)
    with pytest.raises(ValueError, match="no iDDPM noise level"):
        schedules.iddpm_sigmas(4, 81.0, 82.0)

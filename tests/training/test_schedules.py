"""The learning rate is a function of images seen."""

from __future__ import annotations

import math

import pytest

from repro.training.schedules import InverseSqrtDecay, LinearRampup


def test_linear_from_zero_to_the_rate() -> None:
    lr = LinearRampup(1e-3, 10_000_000)
    assert lr(0) == 0.0
    assert lr(2_500_000) == pytest.approx(2.5e-4)
    assert lr(10_000_000) == lr(200_000_000) == 1e-3


def test_no_ramp() -> None:
    lr = LinearRampup(2e-4, 0)
    assert lr(1) == lr(10**9) == 2e-4


def test_constant_then_inverse_square_root() -> None:
    lr = InverseSqrtDecay(0.01, decay_nimg=1000, rampup_nimg=100)
    assert lr(0) == 0.0
    assert lr(50) == pytest.approx(0.005)
    assert lr(100) == lr(1000) == 0.01
    assert lr(4000) == pytest.approx(0.005)


@pytest.mark.parametrize("nimg", [0, 7, 10**7, 10**9])
def test_without_decay_it_is_the_ramp(nimg: int) -> None:
    assert InverseSqrtDecay(0.01)(nimg) == InverseSqrtDecay(0.01, 0)(nimg) == pytest.approx(LinearRampup(0.01)(nimg))


def test_without_ramp_the_first_step_counts() -> None:
    assert InverseSqrtDecay(0.01, rampup_nimg=0)(0) == 0.01


def test_the_papers_rate_at_the_end() -> None:
    """EDM2-S: 70,000 steps of 2048 images, 2^31 images: 0.01 / sqrt(14.98)."""
    assert InverseSqrtDecay(0.01, 70_000 * 2048)(2**31) == pytest.approx(0.01 / math.sqrt(2**31 / 143_360_000))

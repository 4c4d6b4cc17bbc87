"""The learning rate is a function of images seen."""

from __future__ import annotations

import pytest

from repro.training.schedules import LinearRampup


def test_linear_from_zero_to_the_rate() -> None:
    lr = LinearRampup(1e-3, 10_000_000)
    assert lr(0) == 0.0
    assert lr(2_500_000) == pytest.approx(2.5e-4)
    assert lr(10_000_000) == lr(200_000_000) == 1e-3


def test_no_ramp() -> None:
    lr = LinearRampup(2e-4, 0)
    assert lr(1) == lr(10**9) == 2e-4

"""What DiT and U-DiT train with: AdamW, a constant rate, an average of constant decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.training import ema
from repro.training.ema import ConstantEMA
from repro.training.optimizers import Adam, AdamW
from repro.training.schedules import ConstantRate


def test_the_papers_average() -> None:
    profile = ConstantEMA()
    assert profile.beta(0, 256) == profile.beta(10**9, 256) == pytest.approx(0.9999, abs=1e-15)
    assert profile.name == "constant2560000"
    assert ConstantEMA(20480.5).name == "constant20480.5"
    assert ConstantEMA(100).beta(0, 256) == 0.0
    again = ema.from_settings(profile.settings())
    assert isinstance(again, ConstantEMA) and again.length_nimg == profile.length_nimg


def test_constant_rate() -> None:
    assert [ConstantRate(1e-4)(n) for n in (0, 1, 10**9)] == [1e-4] * 3


def steps(optimizer: Adam | AdamW, lr: float = 0.1) -> list[float]:
    """Where two steps with gradients 1 and -3 lead a weight of 2."""
    weight, found = nn.Parameter(torch.tensor([2.0])), []
    made = optimizer.create(weight)
    for gradient in (1.0, -3.0):
        weight.grad = torch.tensor([gradient])
        for group in made.param_groups:
            group["lr"] = lr
        made.step()
        found.append(weight.item())
    return found


def test_without_decay_it_is_adam() -> None:
    assert steps(AdamW()) == steps(Adam())
    assert steps(AdamW())[0] == pytest.approx(2 - 0.1)


def test_decay_is_decoupled_from_the_gradient() -> None:
    assert steps(AdamW(weight_decay=0.5))[0] == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1)

"""The EMA of EDM: half-life in images, with the published ramp-up."""

from __future__ import annotations

import pytest
import torch

from repro.training import ema
from repro.training.ema import HalfLifeEMA, PowerEMA, Profile, TraditionalEMA


def test_half_is_left_after_a_half_life() -> None:
    profile = HalfLifeEMA(1000, None)
    left = 1.0
    for step in range(10):
        left *= profile.beta(step * 100, 100)
    assert left == pytest.approx(0.5, rel=1e-12)


def test_the_ramp_limits_the_half_life() -> None:
    profile = HalfLifeEMA(1000, 0.05)
    assert profile.beta(0, 64) == 0.0
    assert profile.beta(2000, 100) == pytest.approx(0.5)
    assert profile.beta(20_000, 100) == profile.beta(10**9, 100) == pytest.approx(0.5**0.1)


def test_the_first_step_of_a_ramp_takes_the_weights_exactly() -> None:
    average, weights = torch.zeros(3), torch.tensor([0.1, -2.0, 3e-8])
    ema.update(average, weights, HalfLifeEMA(1000, 0.05).beta(0, 64))
    assert torch.equal(average, weights)


def test_update_is_the_weighted_mean() -> None:
    average, weights = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    ema.update(average, weights, 0.75)
    assert torch.allclose(average, torch.tensor([1.5, 1.0]))
    assert torch.equal(weights, torch.tensor([3.0, -2.0]))


PROFILES: list[Profile] = [
    HalfLifeEMA(),
    HalfLifeEMA(88_700, None),
    HalfLifeEMA(7, 0.123),
    TraditionalEMA(500_000, 0.05),
    PowerEMA(0.05),
    PowerEMA(0.123456),
]


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_give_the_same_profile_back(profile: Profile) -> None:
    again = ema.from_settings(profile.settings())
    assert type(again) is type(profile)
    assert again.name == profile.name and again.settings() == profile.settings()
    assert [again.beta(n, 64) for n in (0, 100, 10**7)] == [profile.beta(n, 64) for n in (0, 100, 10**7)]


def test_different_profiles_have_different_names() -> None:
    profiles = [HalfLifeEMA(500_000, None), HalfLifeEMA(500_001), HalfLifeEMA(500_000, 0.1), *PROFILES]
    profiles += [PowerEMA(0.1), PowerEMA(0.1234561), PowerEMA(0.123)]
    assert len({profile.name for profile in profiles}) == len(profiles)


def test_edm2_counts_the_step_itself_for_its_ramp() -> None:
    ours, edms = TraditionalEMA(1000, 0.05), HalfLifeEMA(1000, 0.05)
    assert ours.beta(0, 64) == pytest.approx(0.5**20)
    assert ours.beta(1900, 100) == edms.beta(2000, 100) == pytest.approx(0.5)
    assert ours.beta(10**9, 100) == edms.beta(10**9, 100)


def test_power_function_forgets_the_start_and_keeps_a_share() -> None:
    """The first step takes the weights; of the average at t the share 2^-(gamma + 1) is left at 2 t."""
    profile = PowerEMA(0.1)
    assert profile.beta(0, 64) == 0.0
    left = 1.0
    for nimg in range(6400, 12800, 64):
        left *= profile.beta(nimg, 64)
    assert left == pytest.approx(0.5 ** (profile.gamma + 1), rel=1e-9)

"""Samplers of the variance-preserving diffusion: exact on data whose scores are known, and counted network calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repro.diffusion.vp_samplers import (
    boundaries,
    dpm_solver_sampler,
    dpmpp_sampler,
    euler_maruyama_sampler,
    fast_orders,
)
from repro.diffusion.vp_sde import DiscreteBetas, LinearSDE, VPDenoiser, expand
from repro.errors import UsageError

SD = 0.5


class NormalData(nn.Module):
    """The exact noise prediction for normal data of standard deviation 0.5, from what the network is told."""

    img_resolution, in_channels, label_dim = 2, 1, 0
    null_class = True

    def __init__(self, schedule: str = "linear") -> None:
        super().__init__()
        self.process = LinearSDE() if schedule == "linear" else DiscreteBetas()
        self.calls = 0

    def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        t = tau.double() / self.process.time_factor
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return expand(sigma / (SD**2 * alpha**2 + sigma**2), x) * x


def make(schedule: Any = "linear", target: Any = "noise") -> VPDenoiser:
    return VPDenoiser(NormalData(schedule), schedule, target)


@pytest.mark.parametrize(
    "sampler, schedule, settings, nfe",
    [
        (dpm_solver_sampler, "linear", {"evaluations": 50}, 50),
        (dpm_solver_sampler, "linear", {"evaluations": 40, "method": "singlestep", "order": 3}, 39),
        (dpm_solver_sampler, "linear", {"evaluations": 200, "method": "singlestep", "order": 1}, 200),
        (dpm_solver_sampler, "linear", {"evaluations": 99, "spacing": "time", "method": "singlestep", "order": 2}, 98),
        (dpmpp_sampler, "stable-diffusion", {"evaluations": 50}, 50),
        (dpmpp_sampler, "stable-diffusion", {"evaluations": 51, "order": 2}, 51),
        (dpmpp_sampler, "stable-diffusion", {"evaluations": 200, "data_prediction": False}, 200),
        (dpmpp_sampler, "linear", {"evaluations": 61, "method": "singlestep", "order": 2}, 60),
        (euler_maruyama_sampler, "linear", {"num_steps": 400, "kind": "ode"}, 400),
    ],
)
def test_ends_at_the_data(sampler: Callable[..., Tensor], schedule: Any, settings: dict[str, Any], nfe: int) -> None:
    """The flow maps unit noise to the data linearly, by a factor of 0.5 (of what noise is left at t = 1 apart)."""
    net = make(schedule)
    latents = torch.tensor([-2.0, -0.5, 1.0, 2.0]).reshape(1, 1, 2, 2)
    steps: list[tuple[int, int]] = []
    end = sampler(net, latents, None, torch.randn_like, lambda i, n: steps.append((i, n)), **settings)
    assert end.dtype == torch.float64
    torch.testing.assert_close(end, SD * latents.double(), rtol=0.03, atol=0.0)
    assert net.model.calls == nfe == sampler.NFE(**settings)  # type: ignore[attr-defined]
    assert [i for i, _ in steps] == list(range(steps[0][1]))


def test_adaptive_steps_end_at_the_data() -> None:
    for order in (2, 3):
        net = make()
        end = dpm_solver_sampler(net, torch.ones(2, 1, 2, 2), method="adaptive", order=order)
        torch.testing.assert_close(end, torch.full_like(end, SD), rtol=0.05, atol=0.0)
        assert 10 < net.model.calls < 200


def test_the_sde_has_the_spread_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    draws: list[int] = []

    def noise(x: Tensor) -> Tensor:
        draws.append(1)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    end = euler_maruyama_sampler(make(), torch.randn(2000, 1, 2, 2, generator=generator), None, noise, num_steps=200)
    assert len(draws) == 199 and abs(float(end.std()) - SD) < 0.02


def test_predicting_images_is_predicting_noise() -> None:
    class Images(NormalData):
        def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Tensor:
            t = tau.double() / 999
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            return expand(SD**2 * alpha / (SD**2 * alpha**2 + sigma**2), x) * x

    latents = torch.ones(1, 1, 2, 2)
    end = dpm_solver_sampler(VPDenoiser(Images(), target="x0"), latents)
    torch.testing.assert_close(end, dpm_solver_sampler(make(), latents), rtol=1e-3, atol=0.0)


def test_guidance_takes_both_and_needs_a_condition() -> None:
    assert dpmpp_sampler.NFE(evaluations=50, guidance=1.0) == 100  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="guidance 1 needs a condition"):
        dpmpp_sampler(make("stable-diffusion"), torch.ones(1, 1, 2, 2), guidance=1.0)


@given(st.integers(1, 200))
def test_orders_add_up_to_the_evaluations(evaluations: int) -> None:
    orders = fast_orders(evaluations)
    assert sum(orders) == evaluations and len(orders) == evaluations // 3 + 1 and set(orders) <= {1, 2, 3}


@given(st.floats(1e-4, 1.0))
def test_schedules_invert(t: float) -> None:
    for schedule in (LinearSDE(), DiscreteBetas()):
        time = torch.tensor([t], dtype=torch.float64)
        found = schedule.inverse_lambda(schedule.half_log_snr(time))
        torch.testing.assert_close(found, time, rtol=1e-6, atol=1e-9)
        assert float(schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2) == pytest.approx(1)


def test_boundaries_are_even_where_they_say() -> None:
    process = LinearSDE()
    lam = process.half_log_snr(boundaries(process, 1.0, 1e-4, 8, "lambda", "cpu"))
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(8))
    times = boundaries(process, 1.0, 1e-3, 8, "time", "cpu")
    torch.testing.assert_close(times.diff(), times.diff().mean().expand(8))


@pytest.mark.parametrize(
    "sampler, settings, message",
    [
        (dpm_solver_sampler, {"method": "multistep"}, "unknown method 'multistep'; known: fast, singlestep, adaptive"),
        (dpm_solver_sampler, {"spacing": "quad"}, "unknown spacing 'quad'"),
        (dpm_solver_sampler, {"evaluations": 0}, "needs 1 evaluation or more"),
        (dpm_solver_sampler, {"method": "adaptive", "order": 1}, "adaptive needs an order of 2 or 3"),
        (dpm_solver_sampler, {"method": "singlestep", "evaluations": 2}, "as many evaluations; not 3, 2"),
        (dpmpp_sampler, {"order": 4}, "an order of 1, 2 or 3"),
        (euler_maruyama_sampler, {"kind": "pc"}, "unknown kind 'pc'; known: sde, ode"),
    ],
)
def test_bad_settings(sampler: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(make(), torch.ones(1, 1, 2, 2), **settings)
    with pytest.raises(UsageError, match="needs continuous time"):
        euler_maruyama_sampler(make("stable-diffusion"), torch.ones(1, 1, 2, 2))

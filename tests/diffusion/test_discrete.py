"""Discrete diffusion: schedules by hand, fewer steps, and distributions that agree with each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.diffusion import discrete
from repro.diffusion.discrete import Process, betas, spaced_steps
from repro.errors import UsageError


def test_linear_schedule() -> None:
    whole = betas("linear", 1000)
    assert whole.dtype == torch.float64
    assert (float(whole[0]), float(whole[-1])) == pytest.approx((1e-4, 0.02), abs=1e-15)
    assert float(whole[1] - whole[0]) == pytest.approx(0.0199 / 999)
    assert betas("linear", 500)[-1].item() == pytest.approx(0.04)
    with pytest.raises(UsageError, match="unknown noise schedule 'cosine'; known: linear"):
        betas("cosine", 10)  # type: ignore[arg-type]


def test_cosine_schedule() -> None:
    found = betas("squaredcos_cap_v2", 4)
    share = [math.cos(math.pi / 2 * (i / 4 + 0.008) / 1.008) ** 2 for i in range(5)]
    assert found[0].item() == pytest.approx(1 - share[1] / share[0])
    assert found[3].item() == 0.999


@pytest.mark.parametrize(
    "total, spec, steps",
    [
        (1000, "", list(range(1000))),
        (10, "4", [0, 3, 6, 9]),
        (10, "1", [0]),
        (10, "10", list(range(10))),
        (10, "2,3", [0, 4, 5, 7, 9]),
        (11, [2, 1], [0, 5, 6]),
        (1000, "ddim4", [0, 250, 500, 750]),
        (10, "ddim3", [0, 4, 8]),
        (6, "3", [0, 2, 5]),  # 2.5 is a tie, which goes to the even number
    ],
)
def test_spaced_steps(total: int, spec: Any, steps: list[int]) -> None:
    assert spaced_steps(total, spec) == steps


def test_published_numbers_of_steps() -> None:
    quarter = spaced_steps(1000, "250")
    assert (len(quarter), quarter[0], quarter[-1]) == (250, 0, 999)
    assert spaced_steps(1000, "ddim25")[-1] == 960


@pytest.mark.parametrize(
    "total, spec, message",
    [
        (1000, "1001", "1001 sampling steps cannot be taken of 1000: choose 1 to 1000"),
        (10, "6,1", "6 sampling steps cannot be taken of 5"),
        (10, "0", "0 sampling steps cannot be taken of 10"),
        (1000, "ddim400", "no stride takes exactly 400 of 1000 steps"),
        (1000, "ddim1001", "no stride takes exactly 1001"),
        (1000, "fast", "'fast' chooses no sampling steps; write '250'"),
        (1000, "10,,5", "chooses no sampling steps"),
    ],
)
def test_steps_that_cannot_be(total: int, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spaced_steps(total, spec)


def test_a_shorter_process_has_the_noise_of_the_longer_one_at_its_steps() -> None:
    whole, part = Process(), Process(steps="7")
    assert len(part) == 7
    torch.testing.assert_close(part.abar, whole.abar[part.timesteps])
    torch.testing.assert_close((1 - part.beta).cumprod(0), part.abar)
    assert part.posterior_variance[0] == 0
    assert part.posterior_log_variance[0] == part.posterior_log_variance[1] == part.posterior_variance[1].log()
    torch.testing.assert_close(whole.respaced("7").beta, part.beta)
    assert torch.equal(Process(steps="1000").beta, whole.beta)
    torch.testing.assert_close(whole.beta, betas("linear", 1000), rtol=1e-10, atol=0)


@pytest.mark.parametrize("t", [1, 400, 999])
def test_posterior_is_bayes(t: int) -> None:
    """q(x_{t-1} | x_t, x0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x0), both normal."""
    p, x0, x_t = Process(), 0.7, -0.4
    alpha, beta, before = float(1 - p.beta[t]), float(p.beta[t]), float(p.abar[t - 1])
    precision = alpha / beta + 1 / (1 - before)
    mean = (math.sqrt(alpha) * x_t / beta + math.sqrt(before) * x0 / (1 - before)) / precision
    found = discrete.posterior(p, torch.full((1, 1), x0), torch.full((1, 1), x_t), torch.tensor([t]))
    assert found.mean.item() == pytest.approx(mean, rel=1e-5)
    assert found.variance.item() == pytest.approx(1 / precision, rel=1e-5)
    assert found.log_variance.exp().item() == pytest.approx(1 / precision, rel=1e-5)


def test_noise_and_image_from_each_other() -> None:
    p, t = Process(), torch.tensor([0, 500, 999])
    x0, noise = torch.randn(2, 3, 4, 5, 5).double()
    x_t = discrete.q_sample(p, x0, t, noise)
    torch.testing.assert_close(discrete.x0_from_epsilon(p, x_t, t, noise), x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(discrete.epsilon_from_x0(p, x_t, t, x0), noise, rtol=1e-3, atol=1e-3)


def output(*parts: float) -> Tensor:
    return torch.cat([torch.full((2, 3, 2, 2), value) for value in parts], dim=1)


def test_the_variance_lies_between_the_posteriors_and_beta() -> None:
    p, x, t = Process(), torch.zeros(2, 3, 2, 2), torch.tensor([3, 700])
    low, high = p.posterior_log_variance[t].float(), p.beta[t].log().float()
    for v, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2), (3.0, 2 * high - low)):
        found = discrete.model_moments(p, output(0.1, v), x, t)
        torch.testing.assert_close(found.log_variance[:, 0, 0, 0], expected)
        torch.testing.assert_close(found.variance, found.log_variance.exp())


def test_fixed_variances() -> None:
    p, x, t = Process(), torch.zeros(2, 3, 2, 2), torch.tensor([0, 700])
    large = discrete.model_moments(p, output(0.1), x, t, variance="fixed_large")
    torch.testing.assert_close(large.variance.flatten(), torch.stack([p.posterior_variance[1], p.beta[700]]).float())
    small = discrete.model_moments(p, output(0.1), x, t, variance="fixed_small")
    assert small.variance[0] == 0 and torch.isfinite(small.log_variance).all()


def test_prediction_of_images_and_limits() -> None:
    p, x, t = Process(), torch.ones(2, 3, 2, 2), torch.tensor([3, 700])
    found = discrete.model_moments(p, output(2.0, 0.0), x, t, prediction="x0")
    assert torch.equal(found.x0, torch.full_like(x, 2.0))
    limited = discrete.model_moments(p, output(2.0, 0.0), x, t, prediction="x0", clip=True)
    assert torch.equal(limited.x0, torch.ones_like(x))
    torch.testing.assert_close(limited.mean, discrete.posterior(p, torch.ones_like(x), x, t).mean)


def test_a_learned_variance_needs_its_channels() -> None:
    with pytest.raises(ValueError, match="needs 6 output channels, not 3"):
        discrete.model_moments(Process(), output(0.1), torch.zeros(2, 3, 2, 2), torch.tensor([3, 700]))

"""Samplers against the exact solution of the probability-flow ODE of Gaussian data."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.diffusion.ablation import DISCRETIZATIONS, SCALINGS, SCHEDULES, ablation_sampler, default_range
from repro.diffusion.draws import StackedGenerator
from repro.diffusion.samplers import count_nfe, edm_sampler
from repro.diffusion.schedules import iddpm_sigmas

MEAN, WIDTH = 0.3, 0.5


class Gaussian:
    """Exact denoiser of N(MEAN, WIDTH^2)."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.sigmas: list[float] = []

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.sigmas.append(float(sigma))
        return (WIDTH**2 * x + sigma**2 * MEAN) / (WIDTH**2 + sigma**2)


def exact(latents: Tensor, sigma_max: float) -> Tensor:
    """End of the ODE dx/dsigma = (x - D)/sigma from x = sigma_max latents at sigma = 0."""
    return MEAN + (latents.double() * sigma_max - MEAN) * WIDTH / math.sqrt(WIDTH**2 + sigma_max**2)


def error(sampler: Any, sigma_max: float, **config: Any) -> float:
    latents = torch.linspace(-2, 2, 8).reshape(2, 1, 2, 2)
    return float((sampler(Gaussian(), latents, **config) - exact(latents, sigma_max)).abs().max())


def test_edm_sampler_is_second_order() -> None:
    errors = [error(edm_sampler, 80.0, num_steps=n) for n in (40, 80, 160)]
    assert errors[2] < 1e-3
    assert 3 < errors[0] / errors[1] < 5.5
    assert 3 < errors[1] / errors[2] < 5.5


@pytest.mark.parametrize(
    ("discretization", "schedule", "scaling"), list(itertools.product(DISCRETIZATIONS, SCHEDULES, SCALINGS))
)
def test_every_ablation_converges_to_the_same_image(discretization: str, schedule: str, scaling: str) -> None:
    sigma_max = default_range(discretization)[1]
    if discretization == "iddpm":
        sigma_max = float(iddpm_sigmas(2, 0.002, sigma_max)[0])  # the largest level of the table below 81
    config = {"discretization": discretization, "schedule": schedule, "scaling": scaling}
    coarse = error(ablation_sampler, sigma_max, num_steps=64, **config)
    fine = error(ablation_sampler, sigma_max, num_steps=256, **config)
    # Second order: four times the steps, a sixteenth of the error, down to what the last step to sigma = 0 leaves.
    assert fine < max(1e-3, coarse / 8)


def test_euler_is_first_order() -> None:
    errors = [error(ablation_sampler, 80.0, num_steps=n, solver="euler") for n in (40, 80, 160)]
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_second_order_for_any_alpha(alpha: float) -> None:
    assert error(ablation_sampler, 80.0, num_steps=160, alpha=alpha) < 2e-3


def test_default_ablation_is_the_edm_sampler() -> None:
    latents = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"num_steps": 9, "S_churn": 10.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
    images = []
    for sampler in (edm_sampler, ablation_sampler):
        generator = StackedGenerator([1, 2])
        images.append(sampler(Gaussian(), latents, None, generator.randn_like, **settings))
    assert torch.allclose(images[0], images[1], atol=1e-9)


def test_range_is_limited_to_the_network() -> None:
    net = Gaussian(0.02, 50.0)
    edm_sampler(net, torch.zeros(1, 1, 1, 1), num_steps=5)
    assert max(net.sigmas) == pytest.approx(50)
    assert min(net.sigmas) == pytest.approx(0.02)


def test_deterministic_sampling_ignores_the_noise() -> None:
    latents = torch.randn(2, 1, 2, 2)
    a = edm_sampler(Gaussian(), latents, randn_like=torch.zeros_like)
    b = edm_sampler(Gaussian(), latents, randn_like=lambda x: torch.full_like(x, 1e6))
    assert torch.equal(a, b)


def test_images_do_not_depend_on_their_batch() -> None:
    def sample(seeds: list[int]) -> Tensor:
        generator = StackedGenerator(seeds)
        latents = generator.randn([len(seeds), 1, 2, 2])
        return edm_sampler(Gaussian(), latents, None, generator.randn_like, num_steps=6, S_churn=4.0)

    assert torch.equal(sample([3, 4, 5])[1], sample([4])[0])


def test_stochastic_sampling_keeps_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    latents = torch.randn(4000, 1, 1, 1, generator=generator)
    images = edm_sampler(Gaussian(), latents, None, noise, num_steps=64, S_churn=20.0)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert images.std().item() == pytest.approx(WIDTH, abs=0.03)


def test_nfe() -> None:
    assert count_nfe(edm_sampler) == 35
    assert count_nfe(partial(edm_sampler, num_steps=40)) == 79
    assert count_nfe(partial(edm_sampler, num_steps=256, S_churn=40)) == 511
    assert count_nfe(partial(ablation_sampler, num_steps=512, solver="euler", discretization="vp")) == 512
    assert count_nfe(partial(ablation_sampler, num_steps=128, discretization="iddpm", schedule="vp")) == 255


def test_callback_reports_every_step() -> None:
    calls: list[tuple[int, int]] = []
    edm_sampler(Gaussian(), torch.zeros(1, 1, 1, 1), callback=lambda i, n: calls.append((i, n)), num_steps=3)
    assert calls == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("option", ["solver", "discretization", "schedule", "scaling"])
def test_unknown_options_are_named(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*'nonsense'"):
        ablation_sampler(Gaussian(), torch.zeros(1, 1, 1, 1), **{option: "nonsense"})  # type: ignore[arg-type]

"""Guidance by a second denoiser and the sampler that has it built in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.diffusion.guidance import Guided, check_guide, edm2_sampler
from repro.diffusion.samplers import count_nfe, edm_sampler
from repro.errors import UsageError


class Gaussian:
    """Exact denoiser of data N(mean, s^2) at every pixel; counts its calls and keeps the labels that it got."""

    sigma_min = 0.0
    sigma_max = math.inf

    def __init__(self, mean: float = 0.0, s: float = 0.5, **attributes: Any) -> None:
        self.mean = mean
        self.s = s
        self.calls = 0
        self.labels: list[Tensor | None] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.labels.append(class_labels)
        return (self.s**2 * x + sigma**2 * self.mean) / (self.s**2 + sigma**2)


LATENTS = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_without_guidance_it_is_edms_sampler_in_single_precision() -> None:
    ours = edm2_sampler(Gaussian(0.3), LATENTS, num_steps=16)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), edm_sampler(Gaussian(0.3), LATENTS, num_steps=16), rtol=1e-4, atol=1e-4)


def test_churn_has_its_limits_at_the_levels_of_single_precision() -> None:
    """In float32 the last level is a little below 0.002, and gets no churn where that is the limit."""
    drawn: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x)
        return torch.zeros_like(x)

    steps = 16
    fractions = np.arange(steps, dtype=np.float32) / np.float32(steps - 1)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = (np.float32(high) + fractions * np.float32(low - high)) ** np.float32(7)
    within = int(((levels >= np.float32(0.002)) & (levels <= np.float32(80))).sum())
    assert within < steps
    edm2_sampler(Gaussian(), LATENTS, None, noise, num_steps=steps, S_churn=40, S_min=0.002, S_max=80)
    assert len(drawn) == within


def test_sixty_three_evaluations_by_default() -> None:
    assert count_nfe(edm2_sampler) == 63


@pytest.mark.parametrize("weight, calls", [(1.0, 0), (2.0, 63)])
def test_the_guide_is_called_only_where_it_counts(weight: float, calls: int) -> None:
    main, guide = Gaussian(), Gaussian()
    edm2_sampler(main, LATENTS, guide=guide, guidance=weight)
    assert (main.calls, guide.calls) == (63, calls)


def test_both_networks_get_the_same_labels() -> None:
    labels, main, guide = torch.eye(4), Gaussian(), Gaussian()
    edm2_sampler(main, LATENTS, labels, guide=guide, guidance=1.5)
    assert all(given is labels for given in [*main.labels, *guide.labels])


def test_guidance_extrapolates_from_the_guide() -> None:
    """Two data means: at weight w samples centre on guide + w (main - guide)."""
    samples = edm2_sampler(Gaussian(0.2), LATENTS, guide=Gaussian(0.1), guidance=3.0)
    reference = edm2_sampler(Gaussian(0.1 + 3 * (0.2 - 0.1)), LATENTS)
    torch.testing.assert_close(samples, reference, rtol=1e-4, atol=1e-5)


def test_guidance_works_with_every_sampler() -> None:
    guided = Guided(Gaussian(0.2), Gaussian(0.1), 3.0)
    double = edm_sampler(guided, LATENTS, num_steps=32)
    torch.testing.assert_close(
        edm2_sampler(Gaussian(0.2), LATENTS, guide=Gaussian(0.1), guidance=3.0).double(), double, rtol=1e-3, atol=1e-4
    )


def test_noise_is_drawn_in_the_steps_that_add_some() -> None:
    drawn: list[int] = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(1)
        return torch.zeros_like(x)

    edm2_sampler(Gaussian(), LATENTS, None, noise)
    assert not drawn
    edm2_sampler(Gaussian(), LATENTS, None, noise, num_steps=8, S_churn=4, S_min=0.01, S_max=10)
    levels = [float((80 ** (1 / 7) + i / 7 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7) for i in range(8)]
    assert len(drawn) == sum(0.01 <= level <= 10 for level in levels)


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    edm2_sampler(Gaussian(), LATENTS, callback=lambda i, n: seen.append((i, n)), num_steps=3)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_guidance_without_a_guide() -> None:
    with pytest.raises(UsageError, match="guidance 1.4 needs a guiding network"):
        edm2_sampler(Gaussian(), LATENTS, guidance=1.4)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"img_resolution": 32}, "resolution is 32, the main network's 64"),
        ({"img_channels": 3}, "image channels is 3, the main network's 4"),
        ({"label_dim": 10}, "10 classes, the main network 1000"),
    ],
)
def test_a_guide_of_another_kind_is_refused(attributes: dict[str, Any], message: str) -> None:
    main = Gaussian(img_resolution=64, img_channels=4, label_dim=1000)
    guide = Gaussian(**{"img_resolution": 64, "img_channels": 4, "label_dim": 0, **attributes})
    with pytest.raises(UsageError, match=message):
        edm2_sampler(main, LATENTS, guide=guide, guidance=2.0)


def test_an_unconditional_guide_is_accepted() -> None:
    check_guide(Gaussian(label_dim=10), Gaussian(label_dim=0))

"""Losses: values by hand, order and slicing of the draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.diffusion.draws import Draws, StepDraws
from repro.diffusion.losses import DenoisingLoss, EDMLoss, VELoss, VPLoss, drop_labels, iDDPMLoss
from repro.diffusion.schedules import iddpm_u


class Fixed:
    """Draws that are all one number; remembers the purposes."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.purposes: list[str] = []

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        self.purposes.append(purpose)
        return torch.full(list(shape), self.value)

    randn = rand

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self.rand(shape, purpose).long()


def zero_net(x: Tensor, sigma: Tensor, labels: Tensor | None = None, **_: Any) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("loss", "draw", "sigma"),
    [
        (EDMLoss(), 0.5, math.exp(0.5 * 1.2 - 1.2)),
        (EDMLoss(P_mean=-0.4, P_std=1.0), -2.0, math.exp(-2.4)),
        (VELoss(), 0.0, 0.02),
        (VELoss(), 0.5, math.sqrt(0.02 * 100)),
        (VPLoss(), 0.0, math.sqrt(math.exp(19.9 / 2 + 0.1) - 1)),
        (VPLoss(), 0.5, math.sqrt(math.exp(19.9 / 2 * 0.500005**2 + 0.1 * 0.500005) - 1)),
    ],
)
def test_noise_levels(loss: DenoisingLoss, draw: float, sigma: float) -> None:
    value = loss.sample_sigma(3, Fixed(draw))
    assert value.shape == (3, 1, 1, 1)
    assert value[0].item() == pytest.approx(sigma, rel=1e-5)


def test_weights() -> None:
    sigma = torch.tensor([2.0])
    assert VPLoss().weight(sigma).item() == VELoss().weight(sigma).item() == 0.25
    assert EDMLoss().weight(sigma).item() == pytest.approx((4 + 0.25) / 1)


@pytest.mark.parametrize("loss", [EDMLoss(), VPLoss(), VELoss()])
def test_loss_of_the_zero_denoiser(loss: DenoisingLoss) -> None:
    images = torch.randn(4, 1, 2, 2)
    value = loss(zero_net, images, draws=Fixed(0.25))
    weight = loss.weight(loss.sample_sigma(4, Fixed(0.25)))
    assert torch.allclose(value, weight * images**2)


def test_network_sees_noisy_augmented_images_and_labels() -> None:
    seen: dict[str, Any] = {}

    def net(x: Tensor, sigma: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        seen.update(x=x, sigma=sigma, labels=labels, **kwargs)
        return x

    def augment(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        draws.rand([2], "augment")
        return images + 10, torch.ones(2, 9)

    draws, labels = Fixed(0.5), torch.eye(2)
    value = EDMLoss()(net, torch.zeros(2, 1, 2, 2), labels, augment=augment, draws=draws)
    assert draws.purposes == ["sigma", "augment", "noise"]
    sigma = seen["sigma"][0].item()
    assert torch.allclose(seen["x"], torch.full((2, 1, 2, 2), 10 + 0.5 * sigma))
    assert seen["labels"] is labels
    assert torch.equal(seen["augment_labels"], torch.ones(2, 9))
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert torch.allclose(value, torch.full((2, 1, 2, 2), weight * (0.5 * sigma) ** 2))


@pytest.mark.parametrize("loss", [EDMLoss(), VPLoss(), VELoss()])
def test_micro_batches_give_the_same_losses(loss: DenoisingLoss) -> None:
    images = torch.randn(6, 1, 2, 2)
    whole = loss(zero_net, images, draws=StepDraws(1, 2, 6))
    parts = [loss(zero_net, images[s : s + 2], draws=StepDraws(1, 2, 6, s, 2)) for s in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))


def test_edm_noise_distribution() -> None:
    sigma = EDMLoss().sample_sigma(20000, StepDraws(0, 0, 20000)).log()
    assert sigma.mean().item() == pytest.approx(-1.2, abs=0.05)
    assert sigma.std().item() == pytest.approx(1.2, abs=0.05)


def test_drop_labels() -> None:
    labels = torch.eye(4)[torch.arange(4000) % 4]
    dropped = drop_labels(labels, 0.1, StepDraws(0, 0, 4000))
    assert dropped.sum().item() == pytest.approx(3600, abs=100)
    kept = dropped.any(dim=1)
    assert torch.equal(dropped[kept], labels[kept])
    assert not drop_labels(labels, 1.0, StepDraws(0, 0, 4000)).any()


def test_drop_labels_without_probability_draws_nothing() -> None:
    draws, labels = Fixed(0.0), torch.eye(3)
    assert drop_labels(labels, 0.0, draws) is labels
    assert drop_labels(torch.zeros(3, 0), 0.5, draws).shape == (3, 0)
    assert not draws.purposes
    # u = 0 is below any probability: the label goes.
    assert not drop_labels(labels, 0.5, draws).any()
    assert draws.purposes == ["label_dropout"]


def test_iddpm_levels_are_those_of_the_table_each_as_likely() -> None:
    loss = iDDPMLoss()
    sigma = loss.sample_sigma(20000, StepDraws(0, 0, 20000)).flatten()
    levels, counts = sigma.unique(return_counts=True)
    assert set(levels.tolist()) <= set(iddpm_u(1000)[:1000].tolist()) and len(levels) == 1000
    assert counts.max() < 60  # 20 on average
    assert torch.equal(loss.weight(sigma), 1 / sigma.square())


def test_iddpm_objective_is_the_error_of_the_predicted_noise() -> None:
    """With the preconditioning of Table 1 the weighted error is |F - n / sigma|^2: Ho et al.'s simple objective."""
    sigma = torch.tensor(3.0).reshape(1, 1, 1, 1)
    y, n, predicted = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2) * sigma, torch.randn(1, 1, 2, 2)
    denoised = (y + n) - sigma * predicted
    assert torch.allclose(iDDPMLoss().weight(sigma) * (denoised - y) ** 2, (predicted - n / sigma) ** 2, atol=1e-5)

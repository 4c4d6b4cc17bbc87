"""One optimiser step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.diffusion.draws import StepDraws
from repro.training.step import MicroBatch, NonFiniteLoss, reduction_factor, training_step
from repro.training.weights import FlatWeights


def squares(net: nn.Module, images: Tensor, labels: Any, augment: Any = None, draws: Any = None) -> Tensor:
    return (net(images) - 1) ** 2


def parts(images: Tensor, size: int) -> list[MicroBatch]:
    count = len(images)
    return [
        MicroBatch(images[i : i + size], None, StepDraws(0, 0, count, i, min(size, count - i)))
        for i in range(0, count, size)
    ]


def setup(scale: float = 1.0) -> tuple[nn.Module, FlatWeights, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 1)
    weights = FlatWeights(net)
    return net, weights, torch.optim.SGD([weights.vector], lr=0.0), scale * torch.randn(6, 1, 2, 2)


def gradient(size: int, **kwargs: Any) -> tuple[list[Tensor], float, list[float]]:
    net, weights, optimizer, images = setup()
    before = [p.detach().clone() for p in net.parameters()]
    result = training_step(net, squares, weights, optimizer, parts(images, size), lr=1.0, batch=6, **kwargs)
    moved = [old - new.detach() for old, new in zip(before, net.parameters(), strict=True)]
    return moved, result.grad_norm, result.parts


def expected(factor: float) -> list[Tensor]:
    net, _, _, images = setup()
    (squares(net, images, None).sum() * factor).backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1 / 6), ("mean", 1 / 6 / 4), ("half_sum", 0.5 / 6)])
def test_the_objective_is_the_reduced_error_over_the_batch(reduction: Any, factor: float) -> None:
    moved, norm, _ = gradient(6, reduction=reduction)
    for ours, theirs in zip(moved, expected(factor), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in expected(factor)]).norm()), rel=1e-5)


def test_reduction_factors() -> None:
    assert [reduction_factor(name, 4) for name in ("sum", "mean", "half_sum")] == [1.0, 0.25, 0.5]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up(size: int) -> None:
    whole, norm, losses = gradient(6)
    cut, cut_norm, cut_losses = gradient(size)
    for a, b in zip(whole, cut, strict=True):
        assert torch.allclose(a, b, rtol=1e-5)
    assert cut_norm == pytest.approx(norm, rel=1e-5)
    assert len(cut_losses) == math.ceil(6 / size) and len(losses) == 1


def test_the_loss_scale_scales_the_gradient() -> None:
    for a, b in zip(gradient(6)[0], gradient(6, loss_scale=3.0)[0], strict=True):
        assert torch.allclose(3 * a, b, rtol=1e-5)


def test_clipping_limits_the_norm_of_all_gradients_together() -> None:
    free, norm, _ = gradient(6)
    clipped, reported, _ = gradient(6, clip_norm=norm / 2)
    assert reported == pytest.approx(norm), "the norm is that before clipping"
    assert float(torch.cat([g.flatten() for g in clipped]).norm()) == pytest.approx(norm / 2, rel=1e-4)
    for a, b in zip(free, clipped, strict=True):
        assert torch.allclose(a / 2, b, rtol=1e-4)
    for a, b in zip(free, gradient(6, clip_norm=norm * 2)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", [0, 5])
def test_a_loss_that_is_not_finite_moves_nothing(where: int) -> None:
    net, weights, optimizer, images = setup()
    before = [p.detach().clone() for p in net.parameters()]
    images[where, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLoss, match="the loss is nan"):
        training_step(net, squares, weights, optimizer, parts(images, 2), lr=1.0, batch=6)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


class Spike(torch.autograd.Function):
    """Identity with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.full_like(grads[0], ctx.value), None


@pytest.mark.parametrize(("value", "cleaned"), [(math.nan, 0.0), (math.inf, 1e5), (-math.inf, -1e5)])
def test_gradients_that_are_not_finite_are_replaced_as_published(value: float, cleaned: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    net = nn.Module()
    net.weight = weight

    def loss(net: Any, images: Tensor, labels: Any, augment: Any = None, draws: Any = None) -> Tensor:
        return Spike.apply(net.weight, value).expand(6, 2)[:, :, None, None] + 1

    weights = FlatWeights(net)
    optimizer = torch.optim.SGD([weights.vector], lr=0.0)
    result = training_step(net, loss, weights, optimizer, parts(torch.zeros(6, 1, 2, 2), 6), lr=1.0, batch=6)
    assert torch.equal(weight.detach(), torch.full((2,), -cleaned))
    assert result.grad_norm == pytest.approx(abs(cleaned) * math.sqrt(2))

"""One optimiser step over a global batch, cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from repro.diffusion.draws import Draws
from repro.errors import ReproError
from repro.training.distributed import World
from repro.training.weights import FlatWeights

Reduction = Literal["sum", "mean", "half_sum"]


class NonFiniteLoss(ReproError):
    """The training loss is NaN or infinite: the step is not taken."""


class MicroBatch(NamedTuple):
    """Part of a batch: images (N, C, H, W) float32 in [-1, 1], labels (N, label_dim) one-hot or None, and its draws."""

    images: Tensor
    labels: Tensor | None
    draws: Draws


class StepResult(NamedTuple):
    """loss: mean weighted error over the pixels of the global batch; parts: that of each micro-batch of this process;
    grad_norm: L2 norm of the gradient before clipping."""

    loss: float
    parts: list[float]
    grad_norm: float


def reduction_factor(reduction: Reduction, elements: int) -> float:
    """What the sum over the `elements` of one image is multiplied by.

    EDM trains on the sum. Song et al.'s published objective is the mean over pixels for VP and half the sum for VE;
    Adam does not care, gradient clipping does.
    """
    return {"sum": 1.0, "mean": 1.0 / elements, "half_sum": 0.5}[reduction]


def training_step(
    net: nn.Module,
    loss: Callable[..., Tensor],
    weights: FlatWeights,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    lr: float,
    batch: int,
    augment: Callable[..., Any] | None = None,
    loss_scale: float = 1.0,
    reduction: Reduction = "sum",
    clip_norm: float | None = None,
    infinite_gradient: float = 1e5,
    world: World = World(),
) -> StepResult:
    """One iteration of the published loop without its EMA (EDM specification, section 8.2).

    Args:
        net: denoiser.
        loss: (net, images, labels, augment=, draws=) -> (N, C, H, W) weighted squared error.
        weights: the weights of `net`; they move in place.
        optimizer: the optimiser of `weights.vector`.
        micro_batches: this process's share of the step's images, in parts; all processes' make up the `batch` images.
        lr: learning rate of this step.
        batch: global batch size, by which the sum over images is divided.
        loss_scale: factor of the objective, never divided out again.
        clip_norm: limit of the gradient's L2 norm; None for no clipping.
        infinite_gradient: what takes the place of an infinite entry of the gradient, with its sign (EDM: 1e5; EDM2: 0).
        world: the processes that share the batch; gradients are summed over them.

    Raises:
        NonFiniteLoss: the loss is not finite, in this process or another; no weight has changed in any.
    """
    weights.clear_gradient()
    totals, parts = [], []
    elements = 0
    for part in micro_batches:
        error = loss(net, part.images, part.labels, augment=augment, draws=part.draws)
        elements = error[0].numel()
        total = error.sum()
        totals.append(total.detach().double())
        parts.append(totals[-1] / error.numel())
        torch.autograd.backward(total * (reduction_factor(reduction, elements) * loss_scale / batch))
    mean = float(world.sum_(torch.stack(totals).sum())) / (batch * elements)
    if not math.isfinite(mean):
        raise NonFiniteLoss(f"the loss is {mean}")
    gradient = world.sum_(weights.gather_gradient())
    norm = _clean(gradient, infinite_gradient)
    if clip_norm is not None and norm > clip_norm:
        gradient.mul_(clip_norm / (norm + 1e-6))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepResult(mean, [float(part) for part in parts], norm)


def _clean(gradient: Tensor, infinite: float) -> float:
    """NaN -> 0, +inf -> infinite, -inf -> -infinite in place; returns the L2 norm of what is left."""
    norm = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):
        torch.nan_to_num(gradient, nan=0.0, posinf=infinite, neginf=-infinite, out=gradient)
        norm = float(torch.linalg.vector_norm(gradient))
    return norm

"""Small measurements of a cell's single parts, each so near to one constant that a change of it cannot hide.

Whole steps of training blur: Adam divides the size of the gradient out, an epsilon drowns in activations of order 1,
and a sampler's last step moves seeded pixels by less than rounding does. Each function here returns plain numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repro.data.stream import ImageStream
from repro.diffusion.draws import StepDraws
from repro.diffusion.images import from_uint8
from repro.diffusion.precond import Precond
from repro.experiment import Trajectory

SIGMAS = (0.01, 0.1, 1.0, 10.0, 80.0)
AUGMENTED = 1024
SCORED, SCORED_AGAINST = 100, 400


class GridDraws:
    """Draws on a fixed grid in place of random ones, so that both ends of a distribution are seen."""

    UNIFORM = (0.0, 0.25, 0.5, 0.75, 0.999)
    NORMAL = (-2.0, -1.0, 0.5, 1.0, 2.0)

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.tensor(self.UNIFORM).reshape(list(shape))

    def randn(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.tensor(self.NORMAL).reshape(list(shape))

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.arange(5).reshape(list(shape)) % high


def noise_levels(loss: Callable[..., Tensor]) -> dict[str, list[float]]:
    """Noise levels, noisy inputs and weights of a loss at five points of its distribution, for one-pixel images."""
    seen: dict[str, list[float]] = {}

    def net(x: Tensor, sigma: Tensor, labels: Tensor | None = None, return_logvar: bool = False, **_: Any) -> Any:
        seen["loss_sigma"] = sigma.flatten().tolist()
        seen["loss_noisy"] = x.flatten().tolist()
        denoised = torch.ones_like(x)
        return (denoised, torch.full_like(sigma, 0.5)) if return_logvar else denoised

    weights = loss(net, torch.zeros(5, 1, 1, 1), None, draws=GridDraws())
    return {**seen, "loss_weight": weights.flatten().tolist()}


def optimizer(trajectory: Trajectory) -> list[float]:
    """Where three steps of the optimiser lead weights with tiny, small and large gradients of changing sign."""
    weights = nn.Parameter(torch.zeros(3))
    steps = trajectory.optimizer.create(weights)
    for factor in (1.0, -0.5, 2.0):
        weights.grad = torch.tensor([1e-8, 1e-3, 1.0]) * factor
        for group in steps.param_groups:
            group["lr"] = 1.0
        steps.step()
    return weights.detach().tolist()


def augmentation(trajectory: Trajectory, stream: ImageStream) -> list[float]:
    """Root mean squares of what augmentation changes in many images and of its labels' columns; empty without it."""
    if trajectory.augment is None:
        return []
    images = from_uint8(stream.all_images()[:AUGMENTED])
    changed, labels = trajectory.augment(images, StepDraws(trajectory.seed, 0, len(images), 0, len(images)))
    return [rms(changed), rms(changed - images), *(rms(column) for column in labels.unbind(1))]


@torch.no_grad()
def denoiser(net: Precond) -> list[float]:
    """Root mean square of (D(x; sigma) - x) / sigma at five noise levels, and of every norm's answer to a faint input.

    The faint inputs have a variance of 1e-6: that of the epsilons, which nothing else shows.
    """
    net.eval()
    shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
    labels = torch.eye(net.label_dim)[:2] if net.label_dim else None
    found = []
    for index, sigma in enumerate(SIGMAS):
        x = 0.5 * fixed_normal(shape, index) + sigma * fixed_normal(shape, 100 + index)
        found.append(rms((net(x, torch.tensor([sigma]), labels) - x) / sigma))
    norms = [m for m in net.modules() if type(m).__name__.endswith("Norm")]
    widths = [_width(norm) for norm in norms]
    answers = [norm(1e-3 * fixed_normal((2, n, 2, 2), 200)) for norm, n in zip(norms, widths, strict=True)]
    return [*found, *(rms(answer) for answer in answers[:1]), math.hypot(*(rms(answer) for answer in answers))]


def sampler(bound: Callable[..., Tensor], net: Precond, *, guided: bool = False) -> dict[str, list[float]]:
    """The sampler's path with the exact denoiser of normal data of sd 0.5, in float64: noise levels and end.

    guided: by the exact denoiser of data of sd 1.
    """
    sigmas: list[float] = []

    def exact(x: Tensor, sigma: Tensor, labels: Tensor | None = None, **_: Any) -> Tensor:
        sigmas.append(float(sigma))
        return x * (0.25 / (0.25 + float(sigma) ** 2))

    def wider(x: Tensor, sigma: Tensor, labels: Tensor | None = None, **_: Any) -> Tensor:
        return x * (1 / (1 + float(sigma) ** 2))

    for name in ("sigma_min", "sigma_max", "round_sigma"):
        for denoiser in (exact, wider):
            setattr(denoiser, name, getattr(net, name))
    bound = functools.partial(bound, guide=wider) if guided else bound
    end = bound(exact, torch.ones(1, 1, 1, 1), None, lambda x: torch.full_like(x, 0.5))
    return {"sampler_sigma": sigmas, "sampler_end": [float(end)]}


def scores(protocol: Any, stream: ImageStream) -> list[float]:
    """Every metric of a few images turned upside down, where the protocol needs nothing that is not there."""
    if protocol.missing():
        return []
    images = stream.all_images()
    found = protocol.score(images[:SCORED].flip(2), images[:SCORED_AGAINST])
    return [float(found[name]) for name in protocol.metrics]


def fixed_normal(shape: Sequence[int], key: int) -> Tensor:
    """Normal numbers that depend on the key alone."""
    rng = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def _width(norm: Any) -> int:
    """Channels that a norm can be given: those of its learned scales, or four a group where it has none."""
    scales = next(norm.parameters(), None)
    return int(4 * norm.num_groups) if scales is None else int(scales.numel())


def rms(x: Tensor) -> float:
    """Root mean square of all elements."""
    return math.sqrt(float(x.detach().double().square().mean()))

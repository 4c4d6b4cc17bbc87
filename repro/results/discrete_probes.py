"""The measurements of `repro.results.probes` for discrete diffusion: process, loss, network and sampler on their own.

Loss and sampler get a network whose answer is known in place of a seeded one, so that each number stays near to the
constants that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repro.diffusion.discrete import gather
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.models.dit_layers import layer_norm
from repro.results.probes import fixed_normal, rms

DATA_VARIANCE = 0.25
SHARE = 0.2
"""Where the stand-in's log variance lies between the posterior's (-1) and that of beta (1)."""
UNLABELLED = 0.9
"""The stand-in's prediction without a class, relative to that with one: guidance has something to push."""


def timesteps(net: DiscreteDenoiser) -> Tensor:
    """Five steps of the process, (5,) int64: its first two, a quarter, a half and its last."""
    total = len(net.process)
    return torch.tensor([0, 1, total // 4, total // 2, total - 1])


class StepGridDraws:
    """Draws on a fixed grid: the steps of `timesteps`, and labels dropped at and beside the papers' probability 0.1."""

    UNIFORM = (0.0, 0.099, 0.101, 0.5, 0.999)
    NORMAL = (-2.0, -1.0, 0.5, 1.0, 2.0)

    def __init__(self, steps: Tensor) -> None:
        self.steps = steps

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.tensor(self.UNIFORM)[:, None].expand(list(shape))

    def randn(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.tensor(self.NORMAL).reshape(list(shape))

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return (self.steps * high // (int(self.steps[-1]) + 1)).reshape(list(shape))


class NormalData:
    """In place of a network: the exact prediction for normal data of sd 0.5, and a constant share of the variance.

    It has the process and all settings of `net`, but four image channels: more than guidance has by default. gain:
    factor of the prediction; below 1 it is wrong everywhere, and its error no difference of nearly equal numbers.
    """

    img_channels = 4

    def __init__(self, net: DiscreteDenoiser, gain: float = 1.0) -> None:
        self.gain = gain
        self.process = net.process
        self.prediction = net.prediction
        self.variance = net.variance
        self.label_dim = net.label_dim
        self.class_dropout = net.class_dropout
        self.label_draws = net.label_draws
        self.has_null_class = net.has_null_class
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def inference(self) -> NormalData:
        return self

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None, *, drop: Tensor | None = None) -> Tensor:
        self.seen.append((x, t, drop))
        signal, noise = gather(self.process.abar.sqrt(), t, x), gather((1 - self.process.abar).sqrt(), t, x)
        x0 = x * DATA_VARIANCE * signal / (DATA_VARIANCE * signal**2 + noise**2)
        found = self.gain * (x0 if self.prediction == "x0" else (x - signal * x0) / noise)
        if labels is not None:
            found = found * torch.where(labels.any(1), 1.0, UNLABELLED)[:, None, None, None]
        return torch.cat([found, torch.full_like(x, SHARE)], dim=1) if self.variance == "learned_range" else found


def process(net: DiscreteDenoiser) -> list[float]:
    """Steps of the process, and its beta, abar and posterior log variance at five of them."""
    steps = timesteps(net)
    tables = (net.process.beta, net.process.abar, net.process.posterior_log_variance)
    return [len(net.process), *(value for table in tables for value in table[steps].tolist())]


def losses(loss: Callable[..., Tensor], net: DiscreteDenoiser) -> dict[str, list[float]]:
    """What a loss shows the network at five timesteps (steps, noisy inputs, dropped labels) and its values there."""
    stand_in = NormalData(net, gain=0.7)
    labels = torch.eye(net.label_dim)[:1].expand(5, -1) if net.label_dim else None
    values = loss(stand_in, torch.full((5, 1, 1, 1), 0.5), labels, draws=StepGridDraws(timesteps(net)))
    noisy, told, drop = stand_in.seen[0]
    return {
        "loss_timestep": told.tolist(),
        "loss_noisy": noisy.flatten().tolist(),
        "loss_dropped": [] if drop is None else drop.long().flatten().tolist(),
        "loss_value": values.flatten().tolist(),
    }


@torch.no_grad()
def denoiser(net: DiscreteDenoiser) -> list[float]:
    """Root mean squares of a network's prediction and variance at five timesteps, and of a norm of a faint input.

    One image has a class, the other none. The faint input has a variance of 1e-6: that of the norms' epsilon.
    """
    net.eval()
    shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
    labels = torch.eye(net.label_dim)[:2] if net.label_dim else None
    if labels is not None and net.has_null_class:
        labels[1] = 0
    found = []
    for index, t in enumerate(timesteps(net)):
        output = net(fixed_normal(shape, index), t, labels)
        found += [rms(part) for part in output.split(net.img_channels, dim=1)]
    return [*found, rms(layer_norm(1e-3 * fixed_normal((8, 8), 200)))]


def sampler(bound: Callable[..., Tensor], net: DiscreteDenoiser) -> dict[str, list[float]]:
    """The sampler's path with the stand-in: the steps that it is told, and where four channels end."""
    stand_in = NormalData(net)
    labels = torch.eye(net.label_dim)[:1] if net.label_dim else None
    start = torch.tensor([0.5, 1.0, 1.5, 2.0]).reshape(1, 4, 1, 1)
    end = bound(stand_in, start, labels, lambda x: torch.full_like(x, 0.5))
    return {"sampler_timestep": [int(t[0]) for _, t, _ in stand_in.seen], "sampler_path": end.flatten().tolist()}

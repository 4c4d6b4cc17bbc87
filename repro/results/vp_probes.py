"""The measurements of `repro.results.probes` for the variance-preserving diffusion: schedule, loss, network, scaling of
its skips, and samplers on their own. Loss and samplers get a network whose answer is known, as in `discrete_probes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repro.diffusion.vp_sde import VPDenoiser, expand
from repro.models.skips import LongSkips
from repro.models.u_shape import u_shape
from repro.results.probes import GridDraws, fixed_normal, rms

TIMES = (1e-3, 0.1, 0.4, 0.7, 1.0)
DATA_VARIANCE = 0.25
UNCONDITIONED = 0.9
"""The stand-in's prediction without a condition, relative to that with one: guidance has something to push."""


class Draws(GridDraws):
    """Draws on a fixed grid: both ends of the times, and conditions dropped at and beside the papers' 0.1."""

    UNIFORM = (0.0, 0.099, 0.101, 0.5, 0.999)

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return torch.tensor([0, 1, high // 4, high // 2, high - 1]).reshape(list(shape))


class NormalData:
    """In place of a network: the exact prediction for normal data of sd 0.5, less without a condition.

    gain: factor of the prediction; below 1 it is wrong everywhere, and its error no difference of nearly equal numbers.
    """

    img_channels = 4

    def __init__(self, net: VPDenoiser, gain: float = 1.0) -> None:
        self.process = net.process
        self.target = net.target
        self.class_dropout = net.class_dropout
        self.has_null_class = net.has_null_class
        self.gain = gain
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.seen.append((x, t, condition))
        time = t.reshape(-1).to(torch.float64)
        alpha, sigma = expand(self.process.alpha(time), x), expand(self.process.sigma(time), x)
        found = self.gain * sigma * x / (DATA_VARIANCE * alpha**2 + sigma**2)
        if condition is not None:
            found = found * expand(torch.where(condition.flatten(1).any(1), 1.0, UNCONDITIONED), x)
        return found

    def raw(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        noise = self(x, t, condition)
        if self.target == "noise":
            return noise
        time = t.reshape(-1).to(torch.float64)
        return (x - expand(self.process.sigma(time), x) * noise) / expand(self.process.alpha(time), x)


def conditions(net: VPDenoiser, count: int) -> Tensor | None:
    """`count` equal conditions of the kind that a network takes, or None."""
    if net.context_shape is not None:
        return fixed_normal((1, *net.context_shape), 300).expand(count, -1, -1)
    return torch.eye(net.label_dim)[:1].expand(count, -1) if net.label_dim else None


def process(net: VPDenoiser) -> list[float]:
    """What the network is told of time 1, and alpha, sigma, lambda and its inverse at five times."""
    t = torch.tensor(TIMES, dtype=torch.float64)
    schedule = net.process
    lam = schedule.half_log_snr(t)
    columns = (schedule.alpha(t), schedule.sigma(t), lam, schedule.inverse_lambda(lam))
    return [schedule.time_factor, *(value for column in columns for value in column.tolist())]


def losses(loss: Callable[..., Tensor], net: VPDenoiser) -> dict[str, list[float]]:
    """What a loss shows the network at five times (times, noisy inputs, kept conditions) and its values there."""
    stand_in = NormalData(net, gain=0.7)
    values = loss(stand_in, torch.full((5, 1, 1, 1), 0.5), conditions(net, 5), draws=Draws())
    noisy, told, condition = stand_in.seen[0]
    kept = [] if condition is None else condition.flatten(1).any(1).long().tolist()
    return {
        "loss_time": told.tolist(),
        "loss_noisy": noisy.flatten().tolist(),
        "loss_kept": kept,
        "loss_value": values.flatten().tolist(),
    }


@torch.no_grad()
def denoiser(net: VPDenoiser) -> list[float]:
    """Root mean squares of a network's output at five times, and of its norms' answers to faint inputs.

    The faint inputs have a variance of 1e-6, below that of the norms' epsilon.
    """
    net.eval()
    shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
    found = []
    for index, t in enumerate(TIMES):
        found.append(rms(net.raw(fixed_normal(shape, index), torch.tensor([t]), conditions(net, 2))))
    norms: list[Any] = [m for m in net.modules() if type(m).__name__.endswith("Norm")]
    for norm in (norms[0], norms[-1]):
        width = norm.weight.numel()
        size = (2, width) if isinstance(norm, nn.LayerNorm) else (2, width, 2, 2)
        found.append(rms(norm(1e-3 * fixed_normal(size, 200))))
    return found


@torch.no_grad()
def skips(net: VPDenoiser) -> list[float]:
    """The coefficients of the long skips: the constants, or the gates' means and spreads; empty without scaling."""
    scaling = getattr(net.model, "se", None)
    if not isinstance(scaling, LongSkips):
        return []
    constants = scaling.constants()
    if constants is not None:
        return constants
    seen: list[float] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        gates = scaling.coefficients(*inputs)
        assert isinstance(gates, Tensor)
        seen.extend((float(gates.mean()), float(gates.std())))

    handle = scaling.register_forward_hook(hook)
    shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
    net.raw(fixed_normal(shape, 7), torch.tensor([0.5]), conditions(net, 2))
    handle.remove()
    assert len(seen) == 2 * len(u_shape(net.model).decoder)
    return seen


def sampler(bound: Callable[..., Tensor], net: VPDenoiser) -> dict[str, list[float]]:
    """The sampler's path with the stand-in: the times that it is told, and where four channels end."""
    stand_in = NormalData(net)
    start = torch.tensor([0.5, 1.0, 1.5, 2.0]).reshape(1, 4, 1, 1)
    end = bound(stand_in, start, conditions(net, 1), lambda x: torch.full_like(x, 0.5))
    return {"sampler_time": [float(t[0]) for _, t, _ in stand_in.seen], "sampler_path": end.flatten().tolist()}

"""The analyses of ScaleLong (Huang et al. 2023, section 3) on any network with long skips: coefficients, feature norms,
gradients, and the response to a perturbed input. Definitions of this project, where the paper's are not public.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repro.models.skips import GatedSkips, LongSkips
from repro.models.u_shape import u_shape

POWER_STEPS = 12
"""Products with the Jacobian and its transpose until the largest gain counts as found."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fixed batch that a network is shown.

    x: (B, C, H, W) input of the network; time: (B,) what it is told of the noise; target: (B, C, H, W) what its output
    (its first C channels) should be; delta: (B, C, H, W) a perturbation of x; condition: labels or texts, or None.
    """

    x: Tensor
    time: Tensor
    target: Tensor
    delta: Tensor
    condition: Tensor | None = None

    def output(self, net: nn.Module, x: Tensor) -> Tensor:
        """The network's first C channels for another input."""
        found: Tensor = net(x, self.time, self.condition)
        return found[:, : self.x.shape[1]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one network and probe; skips are numbered from the outermost, parts in running order.

    coefficients: (N,) mean over batch and entries; spread: (N,) their standard deviation; encoder_norms, decoder_norms:
    (parts, B) L2 norm of each part's output, over everything but the batch; loss: mean squared error; gradient: L2 norm
    of its gradient over all parameters; block_gradients: (parts,) over those of each part; gain: (B,) change of the
    output over that of the input, in the direction of the probe; largest_gain: (B,) over all directions, or None.
    """

    coefficients: list[float]
    spread: list[float]
    encoder_norms: Tensor
    decoder_norms: Tensor
    loss: float
    gradient: float
    block_gradients: Tensor
    gain: Tensor
    largest_gain: Tensor | None = None

    @property
    def sum_squares(self) -> float:
        """Sum over the skips of the squared coefficients: what the theory's bounds depend on."""
        return sum(kappa**2 for kappa in self.coefficients)


class Watch:
    """Collects what a forward pass shows, as a context; each list is in running order, so gates are innermost first.

    encoder_norms, decoder_norms: (B,) tensors; gates: (B, L) coefficients of a learnable scaling.
    """

    def __init__(self, net: nn.Module) -> None:
        self.shape = u_shape(net)
        self.skips: LongSkips | None = net.se  # type: ignore[assignment]
        self.encoder_norms: list[Tensor] = []
        self.decoder_norms: list[Tensor] = []
        self.gates: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for parts, into in ((self.shape.encoder, self.encoder_norms), (self.shape.decoder, self.decoder_norms)):
            for part in parts:
                self._handles.append(part.modules[-1].register_forward_hook(_into(into)))
        if isinstance(self.skips, GatedSkips):
            self._handles.append(self.skips.register_forward_hook(self._gate))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _gate(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, GatedSkips)
        self.gates.append(module.coefficients(inputs[0].detach(), inputs[1]).detach())

    def coefficients(self) -> tuple[list[float], list[float]]:
        """(means, standard deviations) of skips 1 ... N."""
        if self.gates:
            ordered = self.gates[::-1]
            return [float(g.mean()) for g in ordered], [float(g.std(correction=0)) for g in ordered]
        count = len(self.shape.decoder)
        constants = (None if self.skips is None else self.skips.constants()) or [1.0] * count
        return constants, [0.0] * count


def _into(norms: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        norms.append(output.detach().flatten(1).norm(dim=1))

    return hook


def measure(net: nn.Module, probe: Probe, power_steps: int = 0) -> Measured:
    """All measurements of a network, which is left as it was; its parameters' gradients are cleared.

    Args:
        net: in evaluation mode.
        power_steps: steps of the power iteration for the largest gain; 0 for none.
    """
    net.zero_grad()
    with Watch(net) as watch:
        output = probe.output(net, probe.x)
        loss = (output - probe.target).square().mean()
        torch.autograd.backward(loss)
    with torch.no_grad():
        change = probe.output(net, probe.x + probe.delta) - output
    coefficients, spread = watch.coefficients()
    found = Measured(
        coefficients,
        spread,
        torch.stack(watch.encoder_norms),
        torch.stack(watch.decoder_norms),
        float(loss.detach()),
        _norm(net.parameters()),
        torch.tensor([_norm(p for module in part.modules for p in module.parameters()) for part in watch.shape.parts]),
        change.detach().flatten(1).norm(dim=1) / probe.delta.flatten(1).norm(dim=1),
        largest_gain(net, probe, power_steps) if power_steps else None,
    )
    net.zero_grad()
    return found


def _norm(parameters: Any) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))


def largest_gain(net: nn.Module, probe: Probe, steps: int = POWER_STEPS) -> Tensor:
    """(B,): largest singular value of each image's Jacobian at the probe, from below, by power iteration on J^T J."""
    direction = probe.delta
    shape = (-1, *[1] * (direction.ndim - 1))
    gain = torch.zeros(len(direction))
    for _ in range(steps):
        direction = direction / direction.flatten(1).norm(dim=1).reshape(shape).clamp(min=1e-30)
        # J v as the derivative of u^T J (linear in u) with respect to u: two reverse passes work in every network.
        x = probe.x.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            output = probe.output(net, x)
        seed = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, x, seed, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, seed, direction, retain_graph=True)
        gain = pushed.detach().flatten(1).norm(dim=1)
        (direction,) = torch.autograd.grad(output, x, pushed.detach())
    net.zero_grad()
    return gain


def oscillation(norms: Sequence[float]) -> tuple[float, float]:
    """How much a feature norm moves in a window of training: ((max - min) / mean, sd of first differences / mean).

    norms: a layer's norms at regular steps, two or more.
    """
    values = torch.tensor(norms, dtype=torch.float64)
    if len(values) < 2:
        return math.nan, math.nan
    mean = float(values.mean())
    return float(values.max() - values.min()) / mean, float(values.diff().std(correction=0)) / mean

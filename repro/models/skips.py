"""Scaling of long skip connections (Huang et al. 2023, "ScaleLong", arXiv 2310.13545): a part of any U-shaped network.

A U has N long skips. Skip 1 is the outermost: it joins the two ends of the network, and its tensor is stored first and
used last; skip N is the innermost. A coefficient multiplies the skip's tensor alone, before it is joined with the
stream of the decoder; nothing is normalised again.

A configuration (a `SkipScaling`) makes the module that a network keeps as `se` and calls as ``se(skip, number)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.layers import Init, Linear

GateKind = Literal["sigmoid", "hardsigmoid", "tanh"]
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": nn.functional.hardsigmoid,
    "tanh": torch.tanh,
}
UNIFORM = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
"""Weight and bias uniform within 1/sqrt(fan in) of zero: PyTorch's own rule for a layer."""
NONE = "no skip scaling"
LEARNABLE = "learnable scaling (LS)"
ATTRIBUTE = "se"


class LongSkips(nn.Module):
    """Base class of what scales: called with a skip's tensor and its number, 1 for the outermost.

    label: name of the scaling in messages; count: N.
    """

    label: str
    count: int

    def constants(self) -> list[float] | None:
        """The coefficients of skips 1 ... N, or None where they depend on what flows through."""
        raise NotImplementedError

    def coefficients(self, skip: Tensor, number: int) -> Tensor | float:
        """Of one skip: a constant, (B, L) of its tokens, or (B, C) of its channels."""
        raise NotImplementedError

    def forward(self, skip: Tensor, number: int) -> Tensor:
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = {f"{prefix}{key}" for key in self.state_dict()}
        check_weights(self.label, own, [key for key in state_dict if key.startswith(prefix)], prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]


class ConstantSkips(LongSkips):
    """Fixed coefficients, without weights; one of exactly 1 costs nothing."""

    def __init__(self, coefficients: Sequence[float], label: str) -> None:
        super().__init__()
        self.factors = list(coefficients)
        self.count = len(self.factors)
        self.label = label

    def constants(self) -> list[float]:
        return self.factors

    def coefficients(self, skip: Tensor, number: int) -> float:
        return self.factors[number - 1]

    def forward(self, skip: Tensor, number: int) -> Tensor:
        factor = self.factors[number - 1]
        return skip if factor == 1 else skip * factor


def calibrate(layer1: nn.Module | Tensor, layer2: nn.Module | Tensor, means: Tensor, kind: GateKind) -> Tensor:
    """Linear, ReLU, linear, and the last activation. means: (B, L) -> (B, L)."""
    assert isinstance(layer1, nn.Module) and isinstance(layer2, nn.Module)
    return GATES[kind](layer2(torch.relu(layer1(means))))


class Gate(nn.Module):
    """Coefficients of the entries of one axis: linear, ReLU, linear, sigmoid of their means over everything else.

    Args:
        length: L, entries of the axis.
        hidden: width in between.
        kind: the last activation.
    """

    def __init__(self, length: int, hidden: int, kind: GateKind = "sigmoid") -> None:
        super().__init__()
        self.kind = kind
        self.layer1 = Linear(length, hidden, init=UNIFORM)
        self.layer2 = Linear(hidden, length, init=UNIFORM)

    def forward(self, means: Tensor) -> Tensor:
        """means: (B, L) -> (B, L), in (0, 1) for a sigmoid."""
        return calibrate(self.layer1, self.layer2, means, self.kind)


class GatedSkips(LongSkips):
    """LS: every skip is calibrated by a gate, over its tokens (B, L, D) or over the channels of its map (B, C, H, W).

    names: which gate each of the skips 1 ... N takes, by the name under which its weights lie; lengths: name -> L or C.
    A single gate for all of them is named '': its layers lie directly under this module.
    """

    def __init__(
        self, names: Sequence[str], lengths: Mapping[str, int], label: str, hidden: Callable[[int], int], kind: GateKind
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.count = len(self.names)
        self.label = label
        self.kind = kind
        for name, length in lengths.items():
            gate = Gate(length, hidden(length), kind)
            for child, module in [(name, gate)] if name else gate.named_children():
                self.add_module(child, module)

    def constants(self) -> None:
        return None

    def coefficients(self, skip: Tensor, number: int) -> Tensor:
        means = skip.mean(2 if skip.ndim == 3 else (2, 3))
        name = self.names[number - 1]
        if name:
            gated: Tensor = self.get_submodule(name)(means)
            return gated
        return calibrate(self.layer1, self.layer2, means, self.kind)

    def forward(self, skip: Tensor, number: int) -> Tensor:
        coefficients = self.coefficients(skip, number)
        return skip * coefficients.reshape(*coefficients.shape, *[1] * (skip.ndim - 2))


class SkipScaling:
    """Base class of the configurations."""

    label: str
    """Name in messages."""

    def over_tokens(self, count: int, length: int) -> LongSkips:
        """For `count` skips of `length` tokens each, (B, L, D)."""
        raise NotImplementedError

    def over_channels(self, widths: Sequence[int]) -> LongSkips:
        """For skips that are maps (B, C, H, W); widths: C of each, outermost first."""
        raise NotImplementedError


class _Constant(SkipScaling):
    def factors(self, count: int) -> list[float]:
        """Coefficients of skips 1 ... count."""
        raise NotImplementedError

    def over_tokens(self, count: int, length: int) -> LongSkips:
        return ConstantSkips(self.factors(count), self.label)

    def over_channels(self, widths: Sequence[int]) -> LongSkips:
        return ConstantSkips(self.factors(len(widths)), self.label)


class InverseSqrt2Scaling(_Constant):
    """2^(-1/2) for every skip."""

    label = "1/sqrt(2) scaling"

    def factors(self, count: int) -> list[float]:
        return [math.sqrt(0.5)] * count


class ConstantScaling(_Constant):
    """CS: kappa^(i - 1) for skip i, so exactly 1 for the outermost and kappa^(N - 1) for the innermost.

    Args:
        kappa: in (0, 1]; the published code recommends 0.5 to 0.95. UsageError for another.
    """

    def __init__(self, kappa: float = 0.5) -> None:
        if not 0 < kappa <= 1:
            raise UsageError(f"ConstantScaling.kappa must be above 0 and at most 1, not {kappa:g}")
        self.kappa = kappa
        self.label = f"constant scaling (CS, kappa {kappa:g})"

    def factors(self, count: int) -> list[float]:
        return [self.kappa**index for index in range(count)]


class LearnableScaling(SkipScaling):
    """LS: gates over tokens as published, or over channels where skips are maps (this project's own choice).

    Args:
        shared: one gate for all skips (of maps: one for each number of channels), else one a skip, of which number 0
            belongs to the innermost.
        reduction: L over the width in between, rounded down.
        gate: last activation; the paper's is the sigmoid.
    """

    UNITS: ClassVar[dict[str, str]] = {"reduction": "resolution"}
    """A gate over fewer tokens is reduced less: one hidden unit alone would be dead in half of all runs."""

    def __init__(self, shared: bool = True, reduction: int = 16, gate: GateKind = "sigmoid") -> None:
        if reduction < 1:
            raise UsageError(f"LearnableScaling.reduction must be 1 or more, not {reduction}")
        if gate not in GATES:
            raise UsageError(f"LearnableScaling.gate must be one of {', '.join(GATES)}, not {gate!r}")
        self.shared = shared
        self.reduction = reduction
        self.gate: GateKind = gate
        self.label = LEARNABLE if shared else f"{LEARNABLE}, a gate a skip"

    def over_tokens(self, count: int, length: int) -> LongSkips:
        if length < self.reduction:
            raise UsageError(f"learnable scaling with reduction {self.reduction} needs as many tokens, not {length}")
        names = [""] * count if self.shared else [str(index) for index in reversed(range(count))]
        return self._gated(names, {"": length} if self.shared else dict.fromkeys(reversed(names), length))

    def over_channels(self, widths: Sequence[int]) -> LongSkips:
        numbered = [str(index) for index in reversed(range(len(widths)))]
        names = [str(width) for width in widths] if self.shared else numbered
        lengths = dict(reversed(list(zip(names, widths, strict=True))))
        return self._gated(names, lengths)

    def _gated(self, names: Sequence[str], lengths: Mapping[str, int]) -> GatedSkips:
        return GatedSkips(names, lengths, self.label, lambda length: max(1, length // self.reduction), self.gate)


def check_weights(label: str, own: Collection[str], found: Collection[str], prefix: str = f"{ATTRIBUTE}.") -> None:
    """UsageError, naming both, where the weights under `prefix` are of another scaling or number of skips.

    label: of the network; own, found: keys of the network's module and of the weights that it is given.
    """
    if set(own) == set(found):
        return
    theirs = _kind_of(found, prefix)
    ours, counts = _kind_of(own, prefix), (_gates(own, prefix), _gates(found, prefix))
    if ours == theirs:
        what = f"gates of {counts[1]} skips, the network has {counts[0]}"
        raise UsageError(f"the weights have {what}: choose the depth that the weights were trained with")
    raise UsageError(
        f"the weights have {theirs}, the network has {label}: choose the scaling that the weights were trained with"
    )


def _kind_of(keys: Collection[str], prefix: str) -> str:
    if not keys:
        return "no learnable scaling"
    return LEARNABLE if f"{prefix}layer1.weight" in keys else f"{LEARNABLE}, a gate a skip or width"


def _gates(keys: Collection[str], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in keys})

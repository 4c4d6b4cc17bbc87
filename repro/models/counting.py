"""How large a network is and what a forward pass costs, counted from the network itself without any memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.models.dit import DiT
from repro.models.udit import UDiT, fused


class Cost(NamedTuple):
    """Of one network; a forward pass is that of one image.

    trainable: parameters that training moves.
    inference: parameters of the form that is sampled from (re-parameterised feed-forwards fused): what U-DiT prints.
    products: multiply-accumulates of its linear layers, convolutions and matrix products.
    traced: those, two operations a normalised element, one a softmax output, and one a channel of queries that cosine
        attention normalises: what U-DiT prints as FLOPs, within 0.02 %.
    """

    trainable: int
    inference: int
    products: int
    traced: int


def _per_element(operations: float) -> Callable[..., int]:
    """A rule for `FlopCounterMode`, which counts a multiply-accumulate as two."""

    def rule(shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return round(2 * operations * math.prod(shape))

    return rule


_TRACED = {
    torch.ops.aten.native_layer_norm: _per_element(2),
    torch.ops.aten._softmax: _per_element(1),
    torch.ops.aten._safe_softmax: _per_element(1),
    torch.ops.aten.linalg_vector_norm: _per_element(0.5),  # of queries and of keys
}


def is_countable(net: nn.Module) -> bool:
    """Whether `cost` knows how the network is called."""
    return isinstance(net, DiT | UDiT)


def cost(make: Callable[[], nn.Module], resolution: int | None = None) -> Cost:
    """Cost of the DiT or U-DiT that `make` builds, on the meta device; resolution: of the latents, if not its own."""
    with torch.device("meta"), torch.no_grad():
        net = make()
        inference = fused(net).eval()
        side: int = net.img_resolution if resolution is None else resolution  # type: ignore[assignment]
        images = torch.empty(1, net.in_channels, side, side)  # type: ignore[call-overload]
        labels = torch.empty(1, dtype=torch.int64)
        with FlopCounterMode(display=False, custom_mapping=_TRACED) as counter:
            inference(images, torch.empty(1), labels)
    counts = counter.get_flop_counts()["Global"]
    elementwise = sum(count for operation, count in counts.items() if operation in _TRACED)
    total = counter.get_total_flops()
    return Cost(
        sum(p.numel() for p in net.parameters() if p.requires_grad),
        sum(p.numel() for p in inference.parameters()),
        (total - elementwise) // 2,
        total // 2,
    )

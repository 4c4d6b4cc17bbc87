"""How large a network is and what a forward pass costs, counted from the network itself without any memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from repro.models.dit import DiT
from repro.models.edm2_layers import MPConv
from repro.models.udit import UDiT, fused


class Cost(NamedTuple):
    """Of one network; a forward pass is that of one image.

    trainable: parameters that training moves.
    inference: parameters of the form that is sampled from (re-parameterised feed-forwards fused): what U-DiT prints.
    products: multiply-accumulates of its linear layers, convolutions and matrix products.
    traced: those, one operation an element of a modulation or gate, one a softmax output, and one a channel of queries
        that cosine attention normalises: what U-DiT prints as FLOPs, within 3,000 operations of the published code's.
    """

    trainable: int
    inference: int
    products: int
    traced: int


def _per_element(operations: float, of_output: bool = False) -> Callable[..., int]:
    """A rule for `FlopCounterMode`, which counts a multiply-accumulate as two: by elements of the input or output."""

    def rule(shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return round(2 * operations * math.prod(out_shape if of_output else shape))

    return rule


_TRACED = {
    torch.ops.aten.addcmul: _per_element(1, of_output=True),  # modulations and gates
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


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations of what runs under it, as EDM2 counts "Gflops" (its specification's section on cost).

    A multiply-accumulate of a convolution or matrix product is one; of an elementwise operation each output is one, of
    a limit or interpolation two, of a sigmoid, SiLU or softmax three, of a group norm four; a norm counts its input.
    What only moves or converts values counts nothing. Work on the weights counts.
    """

    _OUTPUTS = {"lerp": 2, "clamp": 2, "silu": 3, "sigmoid": 3, "_softmax": 3, "gelu": 14, "native_group_norm": 4}
    _ELEMENTWISE = {"add", "sub", "mul", "div", "rsub", "neg", "exp", "log", "pow", "sqrt", "rsqrt", "reciprocal"} | {
        "cos",
        "sin",
        "addcmul",
        "where",
        "mean",
        "sum",
        "avg_pool2d",
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        output = found[0] if isinstance(found, tuple | list) else found
        if isinstance(output, Tensor):
            self.total += self._count(func.overloadpacket.__name__.removesuffix("_"), args, output)
        return found

    def _count(self, name: str, args: Any, output: Tensor) -> int:
        if name == "convolution":
            return output.numel() * math.prod(args[1].shape[1:])
        if name in ("mm", "bmm"):
            return output.numel() * args[0].shape[-1]
        if name == "addmm":
            return output.numel() * args[1].shape[-1]
        if name == "linalg_vector_norm":
            return int(args[0].numel())
        return output.numel() * (self._OUTPUTS.get(name) or int(name in self._ELEMENTWISE))


def operations(net: nn.Module, *inputs: Any) -> int:
    """Operations of a forward pass on meta tensors, see `Operations`.

    To a unit norm and its gain ours brings a weight in one multiplication, the published code in a division and a
    multiplication: both are counted.
    """
    with torch.device("meta"), torch.no_grad(), Operations() as counter:
        net(*inputs)
    normalized = (m for m in net.modules() if isinstance(m, MPConv) and m.weights != "plain")
    return counter.total + sum(module.weight.numel() for module in normalized)

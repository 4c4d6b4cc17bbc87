"""Magnitude-preserving building blocks of Karras et al. 2024 (EDM2), and their plain forms in its ladder C to F.

Every layer is without bias. The constants by which a nonlinearity or a sum is normalised can be folded into the weights
of the next layer (`MPConv`'s gain), which saves passes over the activations and changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.layers import resampling_kernel

EPS = 1e-4
SILU_RMS = 0.596
"""Root mean square of silu(x) for x ~ N(0, 1), as rounded by the paper (Equation 81)."""

WeightRule = Literal["plain", "normalized", "forced"]
"""plain: weights as they are stored (configuration C); normalized: scaled to unit norm at use (D); forced: the stored
weights too are normalised, at the start of every forward pass in training (E to G; Algorithm 1)."""
ResampleMode = Literal["keep", "up", "down"]


def _length(x: Tensor, dims: list[int]) -> Tensor:
    """L2 norm over some axes, which are kept with size 1; accumulated in float32."""
    if x.device.type == "cpu":  # the library's norm over inner axes takes 40 times as long as this there
        return x.to(torch.float32).square().sum(dims, keepdim=True).sqrt_()
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return norm


class _Normalize(torch.autograd.Function):
    """x / (eps + rms(x)) with a gradient in four passes over x, half of what automatic differentiation takes."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, dims: list[int], eps: float) -> Tensor:
        norm = _length(x, dims)
        share = math.sqrt(norm.numel() / x.numel()) if x.numel() else 1.0
        y = x / norm.mul(share).add_(eps).to(x.dtype)
        ctx.save_for_backward(y, norm)
        ctx.dims, ctx.eps, ctx.share = dims, eps, share  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        y, norm = ctx.saved_tensors  # type: ignore[attr-defined]
        dims, eps, share = ctx.dims, ctx.eps, ctx.share  # type: ignore[attr-defined]
        divisor = norm.mul(share).add_(eps)  # d; d(x/d) = dx/d - y dd/d, dd = share^2 (x . dx) / rms, x = y d
        radial = (grad * y).sum(dims, keepdim=True, dtype=torch.float32)
        radial.mul_(share).div_(norm.clamp_min(torch.finfo(torch.float32).tiny))
        return (grad / divisor.to(grad.dtype)).sub_(y * radial.to(y.dtype)), None, None


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS) -> Tensor:
    """x / (eps + rms), the root mean square taken over the axes `dim` (None: all but the first) and in float32.

    Equation 47 and Algorithm 1; `eps` is added to the rms, outside the root. A zero vector stays zero.
    """
    dims = list(range(1, x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    y: Tensor = _Normalize.apply(x, dims, eps)
    return y


def pixel_norm(x: Tensor) -> Tensor:
    """Normalise the channels of each pixel. x: (N, C, H, W)."""
    return normalize(x, 1)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, of unit magnitude for standard normal x (Equation 81)."""
    return F.silu(x) / SILU_RMS


def sum_factors(t: float | None) -> tuple[float, float]:
    """Factors of main path and branch in `mp_sum`; (1, 1), the plain sum, for t None."""
    if t is None:
        return 1.0, 1.0
    length = math.hypot(1 - t, t)
    return (1 - t) / length, t / length


def mp_sum(a: Tensor, b: Tensor, t: float | None = 0.5) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): magnitude-preserving sum, t the weight of b (Equation 88)."""
    main, branch = sum_factors(t)
    return a * main + b * branch


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float | None = 0.5) -> Tensor:
    """Concatenation in which a and b contribute as 1 - t to t whatever their channels (Equation 103); None: plain."""
    if t is None:
        return torch.cat([a, b], dim=dim)
    n_a, n_b = a.shape[dim], b.shape[dim]
    total = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (total * (1 - t) / math.sqrt(n_a)), b * (total * t / math.sqrt(n_b))], dim=dim)


def resample(x: Tensor, f: Sequence[float] = (1, 1), mode: ResampleMode = "keep") -> Tensor:
    """Halve (down) or double (up) the resolution with the separable filter f / sum(f); keep: x itself.

    x: (N, C, H, W). With f = (1, 1) down is the mean of 2x2 pixels and up repeats each pixel.
    """
    if mode == "keep":
        return x
    if len(f) == 2 and f[0] == f[1]:
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
    channels, padding = x.shape[1], (len(f) - 1) // 2
    kernel = resampling_kernel(f).to(x).expand(channels, 1, -1, -1)
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, kernel * 4, stride=2, padding=padding, groups=channels)


class MPFourier(nn.Module):
    """Fixed random features cos(freqs x + phases), times sqrt(2) where they are magnitude-preserving (Equation 75).

    x: (N,) -> (N, num_channels) in the dtype of x. Buffers, never trained, (num_channels,): freqs = 2 pi N(0, 1)
    bandwidth, phases = 2 pi U(0, 1).
    """

    def __init__(self, num_channels: int, bandwidth: float = 1.0, magnitude_preserving: bool = True) -> None:
        super().__init__()
        self.freqs: Tensor
        self.phases: Tensor
        empty = torch.empty(num_channels)
        self.register_buffer("freqs", empty if empty.is_meta else 2 * math.pi * bandwidth * torch.randn(num_channels))
        self.register_buffer("phases", empty if empty.is_meta else 2 * math.pi * torch.rand(num_channels))
        self.factor = math.sqrt(2) if magnitude_preserving else 1.0

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.addcmul(self.phases, x.to(torch.float32)[:, None], self.freqs)
        return (angles.cos() * self.factor).to(x.dtype)


class _UnitRows(torch.autograd.Function):
    """scale w / (sqrt(n) (eps + rms(w))) for each row w of n weights, with a gradient of few passes (Algorithm 1).

    With `force` the stored weight is first overwritten by w / (eps + rms(w)), in place and outside of the gradient. Its
    new rms follows from the old one and is not measured again.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scale: float, force: bool) -> Tensor:
        stored = weight.detach()
        rows = stored.flatten(1)  # a copy where the weight is not contiguous
        column = (-1, *[1] * (weight.ndim - 1))
        root = math.sqrt(rows.shape[1])
        rms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32).div_(root)
        divisor = rms + EPS
        if force:
            stored.div_(divisor.view(column))
            rms = rms / divisor
            divisor = rms + EPS
        factor = (scale / root) / divisor
        ctx.save_for_backward(weight, rms, divisor)
        ctx.factor_root = scale / root  # type: ignore[attr-defined]
        return stored * factor.view(column)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight, rms, divisor = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, g = weight.flatten(1), grad.flatten(1)
        tiny = torch.finfo(torch.float32).tiny
        radial = torch.linalg.vecdot(g, rows)[:, None] / (rms.clamp_min(tiny) * divisor * rows.shape[1])
        factor = ctx.factor_root / divisor  # type: ignore[attr-defined]
        return torch.addcmul(g * factor, rows, radial * factor, value=-1).reshape(weight.shape), None, None


class MPConv(nn.Module):
    """Convolution (kernel 1 or 3) or linear layer (kernel 0) without bias, of magnitude-preserving weights.

    x: (N, in_channels, H, W) -> (N, out_channels, H, W), zero padding; or (N, in_channels) -> (N, out_channels).

    Args:
        weights: how stored weights are used, see `WeightRule`. `plain` ones start uniform in +-1/sqrt(fan in), the
            others standard normal, and are used as w / (sqrt(fan in) rms(w)).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 0, *, weights: WeightRule = "forced") -> None:
        super().__init__()
        if weights not in ("plain", "normalized", "forced"):
            raise ValueError(f"unknown weight rule {weights!r}")
        self.out_channels = out_channels
        self.kernel = kernel
        self.weights = weights
        weight = torch.empty(out_channels, in_channels, *([kernel, kernel] if kernel else []))
        if not weight.is_meta:  # counting parameters: nothing to draw
            if weights == "plain":
                bound = 1 / math.sqrt(in_channels * max(kernel, 1) ** 2)
                nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.normal_(weight)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """gain: factor of the output, a number or a trainable scalar."""
        weight = self._used_weight(gain).to(x.dtype)
        if not self.kernel:
            return F.linear(x, weight)
        if self.kernel == 1 and x.device.type == "cpu":
            if x.is_contiguous():
                return torch.matmul(weight[:, :, 0, 0], x.flatten(2)).reshape(len(x), -1, *x.shape[2:])
            return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0]).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, padding=self.kernel // 2)

    def _used_weight(self, gain: Tensor | float) -> Tensor:
        number = 1.0 if isinstance(gain, Tensor) else gain
        if self.weights == "plain":
            weight = self.weight if number == 1 else self.weight * number
        else:
            weight = _UnitRows.apply(self.weight, number, self.training and self.weights == "forced")
        return weight * gain if isinstance(gain, Tensor) else weight


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels with q, k and v normalised per head and pixel (from configuration C on).

    qkv: (N, 3 C, H, W) -> (N, C, H, W) in the dtype of qkv, softmax included. Channel order of qkv: head slowest, then
    channel of the head, then q, k, v fastest.
    """
    n, channels3, height, width = qkv.shape
    head_width = channels3 // (3 * num_heads)
    parts = normalize(qkv.reshape(n * num_heads, head_width, 3, height * width), 1)
    q, k, v = parts.unbind(2)  # each (N heads, c, H W)
    logits = torch.bmm(q.transpose(1, 2), k / math.sqrt(head_width))
    return torch.bmm(v, logits.softmax(dim=2).transpose(1, 2)).reshape(n, channels3 // 3, height, width)

"""Parts of U-DiT (Tian et al. 2024, arXiv 2405.02730): attention among down-sampled tokens and the feed-forwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.dit_layers import XAVIER, Convolution, attend, convolve, depthwise, split_heads
from repro.models.layers import Linear

FeedForwardKind = Literal["basic", "depthwise", "reparameterised"]
MAX_LOG_SCALE = 4.6052
"""Limit of the logarithm of cosine attention's scale: about 100 (as rounded by the published code)."""


def group_tokens(x: Tensor, factor: int) -> Tensor:
    """Cut a map into factor^2 strided sub-grids of tokens (Figure 3c of the paper).

    x: (N, C, H, W) -> (N, factor^2, H W / factor^2, C). Group factor dy + dx holds the pixels (factor i + dy,
    factor j + dx) in row-major order of (i, j).
    """
    n, channels, height, width = x.shape
    cut = x.reshape(n, channels, height // factor, factor, width // factor, factor)
    return cut.permute(0, 3, 5, 2, 4, 1).reshape(n, factor**2, -1, channels)


def ungroup_tokens(tokens: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Inverse of `group_tokens`: (N, factor^2, T, C) -> (N, C, height, width)."""
    n, _, _, channels = tokens.shape
    cut = tokens.reshape(n, factor, factor, height // factor, width // factor, channels)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(n, height, width, channels).movedim(-1, 1)


class TokenDownSampler(nn.Module):
    """Depthwise convolution before the grouping; nothing is lost, for it keeps the resolution.

    x: (N, C, H, W) -> (N, C, H, W). shortcut: add x to the result.
    """

    def __init__(self, channels: int, kernel: int = 5, shortcut: bool = True) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.layer = depthwise(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return x + y if self.shortcut else y


def rotation_angles(head_width: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Angles of RoPE2D: (height width, head_width / 2) float32, row-major tokens, one column a pair of channels.

    Pair 2k turns by column w_k and pair 2k + 1 by row w_k, w_k = 10000^(-4k / head_width). ValueError unless 4 divides
    the head's width.
    """
    if head_width % 4:
        raise ValueError(f"RoPE2D needs heads of a width divisible by 4, not {head_width}")
    exponents = torch.arange(0, head_width, 4, dtype=torch.float32, device=device) / head_width
    rates = 1.0 / 10000.0**exponents
    token = torch.arange(height * width, device=device)
    column, row = torch.outer(token % width, rates), torch.outer(token // width, rates)
    return torch.stack([column, row], dim=2).flatten(1)


@functools.lru_cache(maxsize=32)
def _rotations(head_width: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `rotation_angles`; they depend on the sizes alone and are kept for the next call."""
    with torch.inference_mode(False), torch.no_grad():
        angles = rotation_angles(head_width, height, width, device)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channels (2m, 2m + 1), seen as a complex number, in float32 whatever the dtype of x.

    x: (..., T, d); cos, sin: (T, d / 2) -> (..., T, d) in the dtype of x.
    """
    real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class TokenAttention(nn.Module):
    """Self-attention within each of factor^2 strided sub-grids of a map: a factor^2-th of full attention's cost.

    x: (N, C, H, W), H and W divisible by the factor -> (N, C, H, W).

    Args:
        width: C.
        num_heads: attention heads.
        factor: token down-sampling; 1 is full attention.
        kernel: of the depthwise convolution before the grouping; None for none (the identity).
        shortcut: add the map to what that convolution gives.
        cosine: similarity of unit vectors times a learned scale a head, in place of the scaled dot product.
        rope: rotate queries and keys by their positions (RoPE2D).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        factor: int = 2,
        kernel: int | None = 5,
        shortcut: bool = True,
        cosine: bool = True,
        rope: bool = True,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{width} channels cannot be split into {num_heads} heads")
        if rope and width // num_heads % 4:
            raise ValueError(f"RoPE2D needs heads of a width divisible by 4, not {width // num_heads}")
        self.num_heads = num_heads
        self.factor = factor
        self.rope = rope
        scales = torch.empty(num_heads, 1, 1)
        self.logit_scale = nn.Parameter(scales if scales.is_meta else scales.fill_(math.log(10))) if cosine else None
        self.to_qkv = Linear(width, 3 * width, init=XAVIER)
        self.to_out = Convolution(width, width, 1)
        self.downsampler = TokenDownSampler(width, kernel, shortcut) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.downsampler is not None:
            x = self.downsampler(x)
        tokens = group_tokens(x, self.factor)
        q, k, v = split_heads(self.to_qkv(tokens).flatten(0, 1), self.num_heads)  # (N groups, heads, T, d)
        if self.rope:
            sizes = (height // self.factor, width // self.factor)
            cos, sin = _rotations(q.shape[3], *sizes, q.device)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.logit_scale is not None:
            # The scale of each head goes to its queries, so that the fused kernels of attention serve here too.
            scale = self.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
            q = (F.normalize(q.float(), dim=3, eps=1e-12) * scale).to(v.dtype)
            k = F.normalize(k.float(), dim=3, eps=1e-12).to(v.dtype)
        attended = attend(q, k, v, 1.0 if self.logit_scale is not None else None).reshape(tokens.shape)
        out: Tensor = self.to_out(ungroup_tokens(attended, self.factor, height, width))
        return out


class BasicFeedForward(nn.Module):
    """1x1 convolution, GELU (tanh-approximated by default), 1x1 convolution. x: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, width: int, hidden: int, gelu: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = Convolution(width, hidden, 1)
        self.fc2 = Convolution(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))
        return y


class DepthwiseFeedForward(nn.Module):
    """1x1 convolution, exact GELU, depthwise 5x5 convolution (no residual around it), 1x1 convolution.

    x: (N, C, H, W) -> (N, C, H, W). The fused form of the re-parameterised one is of this kind too.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project_in = Convolution(width, hidden, 1)
        self.dwconv = depthwise(hidden, 5)
        self.project_out = Convolution(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project_out(self.dwconv(F.gelu(self.project_in(x))))
        return y


class ReparameterisedFeedForward(nn.Module):
    """The depthwise feed-forward with weights that are products and sums of several.

    x: (N, C, H, W) -> (N, C, H, W). Each 1x1 convolution is a product of two by way of half the hidden width; the
    depthwise one is a + D5(a) + D3(a) + D1(a) with kernels of 5, 3 and 1. All of it is linear, so that one convolution
    each, whose weights are made from the stored ones, computes the same; gradients reach every stored weight.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        half = hidden // 2
        self.width = width
        self.hidden = hidden
        self.project_in = nn.Sequential(Convolution(width, half, 1), Convolution(half, hidden, 1))
        self.dwconv = nn.ModuleList(depthwise(hidden, kernel) for kernel in (5, 3, 1))
        self.project_out = nn.Sequential(Convolution(hidden, half, 1), Convolution(half, width, 1))

    def merged(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of `project_in`, `dwconv` and `project_out` in the fused form; the stored ones stay."""
        return [_product(self.project_in), self._kernel(), _product(self.project_out)]

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """One 5x5 kernel in place of three and of the identity."""
        (five, bias5), (three, bias3), (one, bias1) = map(_weights, self.dwconv)
        return five + F.pad(three, (1, 1, 1, 1)) + F.pad(one + 1, (2, 2, 2, 2)), bias5 + bias3 + bias1

    def forward(self, x: Tensor) -> Tensor:
        first, middle, last = self.merged()
        return convolve(convolve(F.gelu(convolve(x, *first)), *middle, groups=self.hidden), *last)

    def fused(self) -> DepthwiseFeedForward:
        """A new module of the fused form with the present weights, for inference."""
        module = DepthwiseFeedForward(self.width, self.hidden).to(next(self.parameters()).device)
        with torch.no_grad():
            parts = (module.project_in, module.dwconv, module.project_out)
            for part, (weight, bias) in zip(parts, self.merged(), strict=True):
                assert part.bias is not None
                part.weight.copy_(weight)
                part.bias.copy_(bias)
        return module.train(self.training)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        refuse_fused(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]


def _product(pair: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Two 1x1 convolutions as one: (weight (out, in, 1, 1), bias (out,)), the product in float32."""
    (inner, inner_bias), (outer, outer_bias) = map(_weights, pair)
    outer = outer.flatten(1)
    return (outer @ inner.flatten(1))[:, :, None, None], outer @ inner_bias + outer_bias


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that has both."""
    assert isinstance(layer, Convolution) and layer.bias is not None
    return layer.weight, layer.bias


def refuse_fused(state_dict: Mapping[str, Any], prefix: str = "") -> None:
    """UsageError where weights for a trainable re-parameterised feed-forward are of its fused form.

    prefix: key of the feed-forward in the state dict, with its dot.
    """
    if f"{prefix}project_in.weight" in state_dict:
        raise UsageError(
            f"the checkpoint holds {prefix}project_in.weight: it is of the fused form, in which the branches of the "
            "re-parameterised feed-forward are one; they cannot be told apart again, so that it can only be sampled "
            "from (as the feed-forward 'depthwise'), not trained on; load the unfused checkpoint"
        )


def feed_forward(kind: FeedForwardKind, width: int, hidden: int) -> nn.Module:
    """The feed-forward of a kind. ValueError for an unknown one."""
    if kind == "basic":
        return BasicFeedForward(width, hidden)
    if kind == "depthwise":
        return DepthwiseFeedForward(width, hidden)
    if kind == "reparameterised":
        return ReparameterisedFeedForward(width, hidden)
    raise ValueError(f"unknown feed-forward {kind!r}; known: basic, depthwise, reparameterised")

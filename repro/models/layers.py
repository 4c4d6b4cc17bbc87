"""Building blocks of the U-Nets of Karras et al. 2022 (EDM): layers, embeddings, attention and the residual block."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError


@dataclass(frozen=True)
class Init:
    """How a layer draws its initial values.

    mode: ``xavier_uniform``, ``xavier_normal``, ``kaiming_uniform`` or ``kaiming_normal``.
    weight, bias: factors applied to the drawn weight and bias (a factor of 0 gives exact zeros). The bias is drawn with
    the fans of the weight.
    """

    mode: str = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int, factor: float) -> nn.Parameter:
        """Draw a parameter of the given shape, times `factor`. ValueError for an unknown mode."""
        if torch.empty(0).is_meta:  # counting parameters: nothing to draw, and meta arithmetic imports the compiler
            return nn.Parameter(torch.empty(*shape))
        if self.mode == "xavier_uniform":
            value = math.sqrt(6 / (fan_in + fan_out)) * (torch.rand(*shape) * 2 - 1)
        elif self.mode == "xavier_normal":
            value = math.sqrt(2 / (fan_in + fan_out)) * torch.randn(*shape)
        elif self.mode == "kaiming_uniform":
            value = math.sqrt(3 / fan_in) * (torch.rand(*shape) * 2 - 1)
        elif self.mode == "kaiming_normal":
            value = math.sqrt(1 / fan_in) * torch.randn(*shape)
        else:
            raise ValueError(f"unknown initialisation mode {self.mode!r}")
        return nn.Parameter(value * factor)


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """The parameter in the dtype of x; the parameter itself where nothing is to be cast."""
    return parameter if parameter is None or parameter.dtype == x.dtype else parameter.to(x.dtype)


class Linear(nn.Module):
    """``x W^T + b`` in the dtype of x. x: (N, in_features) -> (N, out_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: Init = Init()) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        fans = (in_features, out_features)
        self.weight = init.draw([out_features, in_features], *fans, init.weight)
        self.bias = init.draw([out_features], *fans, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = _like(self.weight, x)
        assert weight is not None
        return F.linear(x, weight, _like(self.bias, x))


def resampling_kernel(resample_filter: Sequence[float]) -> Tensor:
    """Separable two-dimensional low-pass kernel f f^T / (sum f)^2. Returns (1, 1, L, L) float32 that sums to 1."""
    area = sum(resample_filter) ** 2
    return torch.tensor([[[[a * b / area for b in resample_filter] for a in resample_filter]]], dtype=torch.float32)


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero each element with the given probability and divide what is kept by the rest of it.

    Masks come from the global generator of x's device. On the CPU 16 random bits decide about an element, for a quarter
    of the time of a Bernoulli draw: the probability is rounded to a multiple of 1/65536.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = round(probability * 65536)
    if dropped == 65536:
        return torch.zeros_like(x)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
    return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


# For images of a few pixels the CPU library's convolutions are mostly overhead: the two functions below and
# `Conv2d._resample` write them as matrix products, which takes a third to a half of the time.
MATRIX_PIXELS = 256


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 convolution. x: (N, C, H, W), weight: (O, C, 1, 1), bias: (O,) -> (N, O, H, W)."""
    n, channels, height, width = x.shape
    matrix = weight[:, :, 0, 0].expand(n, -1, -1)
    return torch.baddbmm(bias[:, None], matrix, x.reshape(n, channels, -1)).reshape(n, -1, height, width)


def tiny_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution, zero padding, of images so small that every pixel sees every other one.

    x: (N, C, H, W), H, W <= 2; weight: (O, C, 3, 3), bias: (O,) -> (N, O, H, W).
    """
    n, channels, height, width = x.shape
    pixels = height * width
    taps = weight.reshape(-1, 9) @ _taps(height, width, x.dtype)  # (O C, input pixel x output pixel)
    matrix = taps.reshape(-1, channels, pixels, pixels).permute(1, 2, 0, 3).reshape(channels * pixels, -1)
    return torch.addmm(bias.repeat_interleave(pixels), x.reshape(n, -1), matrix).reshape(n, -1, height, width)


@functools.lru_cache(maxsize=16)
def _taps(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(9, pixels^2): which of the nine weights connects an input pixel (slow) with an output pixel (fast)."""
    chosen = torch.zeros(3, 3, height, width, height, width, dtype=dtype)
    for y_in, x_in, y_out, x_out in itertools.product(range(height), range(width), range(height), range(width)):
        chosen[y_in - y_out + 1, x_in - x_out + 1, y_in, x_in, y_out, x_out] = 1
    return chosen.reshape(9, -1)


class Conv2d(nn.Module):
    """Convolution, optionally after halving or doubling the resolution with a low-pass filter.

    x: (N, in_channels, H, W) -> (N, out_channels, H', W'), H' = H, H/2 (down) or 2H (up); zero padding everywhere.
    kernel 0 means pure resampling: neither weight nor bias. `fused_resample` (down only) convolves at the high
    resolution first and pads once, which differs from the plain order at the borders.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init: Init = Init(),
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("a convolution resamples either up or down, not both")
        if fused_resample and not (down and kernel):
            raise ValueError("fused_resample needs down=True and a kernel")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self._matrices: dict[tuple[object, ...], Tensor] = {}
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = [out_channels, in_channels, kernel, kernel]
        self.weight = init.draw(shape, *fans, init.weight) if kernel else None
        self.bias = init.draw([out_channels], *fans, init.bias) if kernel and bias else None
        self.resample_filter: Tensor | None
        self.register_buffer("resample_filter", resampling_kernel(resample_filter) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        if self.fused_resample:
            assert weight is not None and self.resample_filter is not None
            overlap = (self.resample_filter.shape[-1] - 1) // 2
            x = F.conv2d(x, weight, padding=self.kernel // 2 + overlap)
            x = self._resample(x, padding=0)
            return x if bias is None else x + bias[:, None, None]
        if self.resample_filter is not None:
            x = self._resample(x, padding=(self.resample_filter.shape[-1] - 1) // 2)
        if weight is None:
            return x
        if x.device.type == "cpu" and bias is not None:
            if self.kernel == 1:
                return pointwise(x, weight, bias)
            if self.kernel == 3 and max(x.shape[2:]) <= 2:
                return tiny_convolution(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=self.kernel // 2)

    def _resample(self, x: Tensor, padding: int) -> Tensor:
        resample = self._upsample if self.up else self._downsample
        n, channels, height, width = x.shape
        if x.device.type != "cpu" or height * width > MATRIX_PIXELS:
            return resample(x, padding)
        key = (height, width, padding, x.dtype)
        if key not in self._matrices:
            with torch.no_grad():
                pixels = torch.eye(height * width, dtype=x.dtype).reshape(-1, 1, height, width)
                self._matrices[key] = resample(pixels, padding)
        matrix = self._matrices[key]
        return (x.reshape(n * channels, -1) @ matrix.flatten(1)).reshape(n, channels, *matrix.shape[2:])

    def _depthwise_kernel(self, x: Tensor) -> Tensor:
        kernel = _like(self.resample_filter, x)
        assert kernel is not None
        return kernel.expand(x.shape[1], 1, -1, -1)

    def _downsample(self, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, self._depthwise_kernel(x), stride=2, padding=padding, groups=x.shape[1])

    def _upsample(self, x: Tensor, padding: int) -> Tensor:
        # Factor 4: three of four input samples of the transposed convolution are zeros.
        kernel = self._depthwise_kernel(x) * 4
        return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


class GroupNorm(nn.Module):
    """Group normalisation with min(32, channels // 4) groups; ValueError if they do not divide the channels."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
        self.eps = eps
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise ValueError(f"{num_channels} channels cannot be split into {self.num_groups} groups")
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, _like(self.weight, x), _like(self.bias, x), self.eps)


class PositionalEmbedding(nn.Module):
    """Sinusoids of geometrically spaced frequencies 1 ... 1/max_positions. x: (N,) -> (N, num_channels), [cos, sin].

    With `endpoint` the lowest frequency is exactly 1/max_positions, else one step above it.
    """

    def __init__(self, num_channels: int, max_positions: float = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.max_positions = max_positions
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=x.device) / (half - int(self.endpoint))
        angles = torch.outer(x, ((1 / self.max_positions) ** exponents).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features; `freqs` is drawn once and never trained. x: (N,) -> (N, num_channels), [cos, sin]."""

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.freqs: Tensor
        freqs = torch.empty(num_channels // 2)
        self.register_buffer("freqs", freqs if freqs.is_meta else torch.randn(num_channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels. qkv: (N, 3 C, H, W) -> (N, C, H, W).

    Channel order of qkv: head slowest, then channel of the head, then q, k, v fastest. The softmax and its gradient
    are in float32 whatever the dtype of qkv.
    """
    n, channels3, height, width = qkv.shape
    head_width = channels3 // (3 * num_heads)
    q, k, v = qkv.reshape(n * num_heads, head_width, 3, height * width).unbind(2)  # each (N heads, c, H W)
    logits = torch.bmm(q.float().transpose(1, 2), (k / math.sqrt(head_width)).float())
    weights = logits.softmax(dim=2).to(qkv.dtype)
    return torch.bmm(v, weights.transpose(1, 2)).reshape(n, channels3 // 3, height, width)


class UNetBlock(nn.Module):
    """Residual block with embedding, optional resampling and optional self-attention (Karras et al. 2022, Figure 9).

    x: (N, in_channels, H, W), emb: (N or 1, emb_channels) -> (N, out_channels, H', W'). num_heads 0: no attention.
    `adaptive_scale` makes the embedding scale and shift the normalised features, else it is added before the norm.
    `clip_act` limits the absolute values of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init = Init(),
        init_zero: Init = Init(weight=0.0),
        init_attn: Init | None = None,
        clip_act: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is a probability below 1, not {dropout}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.adaptive_scale = adaptive_scale
        self.clip_act = clip_act

        def conv(c_in: int, c_out: int, kernel: int, rule: Init, resampled: bool = False) -> Conv2d:
            return Conv2d(
                c_in, c_out, kernel, up=resampled and up, down=resampled and down,
                resample_filter=resample_filter, init=rule,
            )  # fmt: skip

        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = conv(in_channels, out_channels, 3, init, resampled=True)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = conv(out_channels, out_channels, 3, init_zero)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            projected = resample_proj or in_channels != out_channels
            self.skip = conv(in_channels, out_channels, 1 if projected else 0, init, resampled=True)
        if num_heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = conv(out_channels, out_channels * 3, 1, init_attn or init)
            self.proj = conv(out_channels, out_channels, 1, init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + params))
        if self.training and self.dropout:
            h = dropout(h, self.dropout)
        h = self.conv1(h)
        x = self._scaled_sum(h, x if self.skip is None else self.skip(x))
        if self.num_heads:
            x = self._scaled_sum(self.proj(attention(self.qkv(self.norm2(x)), self.num_heads)), x)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _scaled_sum(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b if self.skip_scale == 1 else (a + b).mul_(self.skip_scale)

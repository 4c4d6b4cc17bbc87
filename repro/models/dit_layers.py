"""Parts that DiT (Peebles and Xie 2022) and U-DiT (Tian et al. 2024) share: layers, embedders, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.layers import Init, Linear

XAVIER = Init("xavier_uniform")
ZERO = Init(weight=0.0)
NORM_EPS = 1e-6
TIME_FEATURES = 256


def small_normal(fan_in: int) -> Init:
    """Normal weights of standard deviation 0.02, for a layer of the given fan in."""
    return Init("kaiming_normal", weight=0.02 * math.sqrt(fan_in))


class Convolution(nn.Module):
    """Convolution of odd kernel that keeps the resolution, in the dtype of x.

    x: (N, in_channels, H, W) -> (N, out_channels, H, W), zero padding. `groups` = in_channels is depthwise. `fans`
    replaces the (fan in, fan out) of the initialisation, by default those of PyTorch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        groups: int = 1,
        bias: bool = True,
        init: Init = XAVIER,
        fans: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        fan_in, fan_out = fans or (in_channels // groups * kernel**2, out_channels * kernel**2)
        shape = [out_channels, in_channels // groups, kernel, kernel]
        self.weight = init.draw(shape, fan_in, fan_out, init.weight)
        self.bias = init.draw([out_channels], fan_in, fan_out, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.groups)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """Convolution with weights of any dtype. x: (N, C, H, W), weight: (O, C / groups, k, k), k odd, zero padding."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    kernel = weight.shape[2]
    if kernel == 1 and groups == 1:  # a matrix product over channels, with channels last
        return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return F.conv2d(x, weight, bias, padding=kernel // 2, groups=groups)


def depthwise(channels: int, kernel: int) -> Convolution:
    """Depthwise convolution with bias."""
    return Convolution(channels, channels, kernel, groups=channels)


class PatchEmbedding(nn.Module):
    """Convolution `proj` whose weight is drawn as a matrix of out_channels x (in_channels kernel^2).

    x: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride); stride is 1 (zero padding) or the kernel's.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        fans = (in_channels * kernel**2, out_channels)
        self.proj = Convolution(in_channels, out_channels, kernel, fans=fans)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            projected: Tensor = self.proj(x)
            return projected
        bias = self.proj.bias
        assert bias is not None
        return F.conv2d(x, self.proj.weight.to(x.dtype), bias.to(x.dtype), stride=self.stride)


def timestep_features(t: Tensor, width: int = TIME_FEATURES) -> Tensor:
    """[cos(t w_0), ..., sin(t w_0), ...] with w_k = 10000^(-k / half), half = width // 2, k = 0 ... half - 1.

    t: (N,) of any dtype, may be fractional -> (N, width) float32; an odd width gets a last column of zeros.
    """
    half = width // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.to(torch.float32)[:, None] * exponents.exp()
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep, two linear layers with SiLU in between. t: (N,) -> (N, width) float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = Linear(TIME_FEATURES, width, init=small_normal(TIME_FEATURES))
        self.mlp = nn.Sequential(first, nn.SiLU(), Linear(width, width, init=small_normal(width)))

    def forward(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.mlp(timestep_features(t))
        return embedded


def check_counts(name: str, **counts: int) -> None:
    """UsageError where a count of a network (heads, channels, blocks) is below 1."""
    for key, value in counts.items():
        if value < 1:
            raise UsageError(f"{name}.{key} must be 1 or more, not {value}")


class LabelEmbedder(nn.Module):
    """A vector for each class and, where labels are ever dropped, one more for "no class": the null class.

    Args:
        num_classes: classes; the null class is the label `num_classes`.
        width: of the vectors.
        dropout: probability with which training drops a label. Whoever trains draws and hands over what is dropped, so
            that the network itself is a function of its arguments.
    """

    def __init__(self, num_classes: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise UsageError(f"class_dropout is a probability, not {dropout:g}")
        self.num_classes = num_classes
        self.dropout = dropout
        rows = num_classes + (dropout > 0)
        init = small_normal(width)
        weight = init.draw([rows, width], width, rows, init.weight)
        self.embedding_table = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """y: (N,) int64 labels; drop: (N,), nonzero where the null class takes the label's place -> (N, width) float32.

        UsageError for a label outside of the table (looked at on the CPU only; a GPU has its own assertion) and for
        labels to drop where there is no null class.
        """
        rows = self.embedding_table.num_embeddings
        if drop is not None:
            if rows == self.num_classes:
                raise UsageError("labels cannot be dropped: a network trained without label dropout has no null class")
            y = torch.where(drop.to(y.device) != 0, self.num_classes, y)
        if y.device.type == "cpu" and y.numel() and not (0 <= int(y.min()) and int(y.max()) < rows):
            bad = int(y.max()) if int(y.max()) >= rows else int(y.min())
            null = f" ({self.num_classes} is the null class)" if rows > self.num_classes else ""
            raise UsageError(f"label {bad} is outside of the table of {rows} rows, 0 to {rows - 1}{null}")
        embedded: Tensor = self.embedding_table(y)
        return embedded


def modulation_head(width: int, parts: int) -> nn.Sequential:
    """adaLN-zero head: SiLU and a linear layer that starts at zero. c: (N, width) -> (N, parts width)."""
    return nn.Sequential(nn.SiLU(), Linear(width, parts * width, init=ZERO))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift; shift and scale broadcast against x."""
    return torch.addcmul(shift, x, 1 + scale)


def layer_norm(x: Tensor) -> Tensor:
    """Zero mean and unit (biased) variance over the last axis, epsilon 1e-6, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 C), q, k and v one after the other and each head-major -> three of (B, heads, T, C / heads)."""
    batch, tokens, channels3 = qkv.shape
    parts = qkv.reshape(batch, tokens, 3, num_heads, channels3 // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v with scale d^-1/2 by default. Each (B, heads, T, d) -> (B, T, heads d), head-major."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def check_divisible(what: str, sizes: Sequence[int], factor: int, why: str) -> None:
    """UsageError unless `factor` divides every size."""
    for size in sizes:
        if size < 1 or size % factor:
            near = max(factor, round(size / factor) * factor)
            raise UsageError(
                f"{what} of {size} pixels a side: it must be divisible by {factor} ({why}), such as {near}"
            )

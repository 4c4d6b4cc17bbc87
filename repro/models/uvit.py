"""U-ViT: a vision transformer with long skip connections (Bao et al. 2022, arXiv 2209.12152)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.dit_layers import Convolution, attend, check_divisible, small_normal, split_heads, timestep_features
from repro.models.layers import Init, Linear
from repro.models.skips import UNIFORM, SkipScaling


def linear(in_features: int, out_features: int, bias: bool = True) -> Linear:
    """A linear layer with weights of standard deviation 0.02 (published: cut off at 100 of them) and biases of 0."""
    return Linear(in_features, out_features, bias, init=small_normal(in_features))


class Attention(nn.Module):
    """Multi-head self-attention. x: (B, L, D) -> (B, L, D). Under autocast the softmax stays in float32."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = False, qk_scale: float | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale
        self.qkv = linear(width, 3 * width, bias=qkv_bias)
        self.proj = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = split_heads(self.qkv(x), self.num_heads)
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                y = attend(parts[0].float(), parts[1].float(), parts[2].float(), self.scale)
        else:
            y = attend(*parts, self.scale)
        projected: Tensor = self.proj(y)
        return projected


class Mlp(nn.Module):
    """Linear, exact GELU, linear. x: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class Block(nn.Module):
    """Transformer block with pre-norm. x: (B, L, D), skip: the same -> (B, L, D).

    joins: whether the block takes a skip, which a linear layer joins with the stream: stream first, skip second.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, qkv_bias, qk_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.skip_linear = linear(2 * width, width) if joins else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=2))
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class PatchEmbedding(nn.Module):
    """Patches to tokens in row-major order. x: (B, C, H, W) -> (B, H W / patch^2, D)."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = Convolution(in_channels, width, patch_size, init=UNIFORM)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.proj.weight, self.proj.bias, stride=self.patch_size).flatten(2).transpose(1, 2)


class UViT(nn.Module):
    """The network; the defaults are U-ViT-S/2 on CIFAR-10.

    Time, condition and image patches are all tokens of one sequence: [label, time, patches], [time, patches] without
    classes, or [time, text, patches]. Depth // 2 encoder blocks, one in the middle, as many decoder blocks.

    Args:
        img_resolution: pixels of a side, divisible by the patch.
        in_channels: image channels.
        patch_size: pixels of a token's side.
        depth: blocks less the middle one; an odd depth loses one.
        num_heads, head_channels: attention heads and their width; the network is their product wide.
        mlp_ratio: hidden width of the MLPs over the network's.
        qkv_bias, qk_scale: bias of the attention's first layer; factor of its logits, None for head_channels^(-1/2).
        time_mlp: two linear layers on the time token.
        label_dim: classes; 0 for none.
        null_class: one more row in the table of classes, for "no class".
        context_tokens, context_dim: tokens and width of a text that conditions; 0 tokens for none.
        conv: a 3x3 convolution at the end.
        long_skips: False for decoder blocks without skips. A scaling then has no effect, and `VPDenoiser` refuses it.
        skip_scaling: scaling of the long skips; None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "label_dim": "classes",
        "depth": "blocks",
        "head_channels": "head_channels",
        "context_dim": "channels",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 3,
        patch_size: int = 2,
        depth: int = 12,
        num_heads: int = 8,
        head_channels: int = 64,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        time_mlp: bool = False,
        label_dim: int = 0,
        null_class: bool = False,
        context_tokens: int = 0,
        context_dim: int = 768,
        conv: bool = True,
        long_skips: bool = True,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        check_divisible("an image", [img_resolution], patch_size, "the patch")
        if label_dim and context_tokens:
            raise UsageError("a U-ViT takes classes or a text, not both: set label_dim or context_tokens to 0")
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.label_dim = label_dim
        self.null_class = null_class
        self.context_tokens = context_tokens
        self.context_dim = context_dim
        self.width = width = num_heads * head_channels
        self.count = depth // 2
        self.long_skips = long_skips and self.count > 0
        self.extras = 1 + bool(label_dim) + context_tokens
        length = self.extras + (img_resolution // patch_size) ** 2
        self.pos_embed = small_normal(1).draw([1, length, width], 1, 1, 0.02)
        self.patch_embed = PatchEmbedding(in_channels, width, patch_size)
        self.time_embed = (
            nn.Sequential(linear(width, 4 * width), nn.SiLU(), linear(4 * width, width)) if time_mlp else nn.Identity()
        )
        self.context_embed = linear(context_dim, width) if context_tokens else None
        rows = label_dim + null_class
        table = Init("kaiming_normal").draw([rows, width], 1, 1, 1.0) if label_dim else None
        self.label_emb = None if table is None else nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
        options = (width, num_heads, mlp_ratio, qkv_bias, qk_scale)
        self.in_blocks = nn.ModuleList(Block(*options) for _ in range(self.count))
        self.mid_block = Block(*options)
        self.out_blocks = nn.ModuleList(Block(*options, joins=long_skips) for _ in range(self.count))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = linear(width, patch_size**2 * in_channels)
        self.final_layer = Convolution(in_channels, in_channels, 3, init=UNIFORM) if conv else nn.Identity()
        self.se = None if skip_scaling is None else skip_scaling.over_tokens(self.count, length)

    def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: (B, C, R, R) noisy images; tau: (B,) times as the network is told them; condition: (B,) int64 labels, or
        (B, context_tokens, context_dim) of a text; None without. Returns (B, C, R, R), the prediction."""
        if x.shape[2:] != (self.img_resolution, self.img_resolution):
            raise UsageError(f"this U-ViT takes {self.img_resolution} pixels a side, not {tuple(x.shape[2:])}")
        h = torch.cat([*self._extra_tokens(tau, condition), self.patch_embed(x)], dim=1) + self.pos_embed
        skips: list[Tensor] = []
        for block in self.in_blocks:
            h = block(h)
            skips.append(h)
        h = self.mid_block(h)
        for block in self.out_blocks:
            number = len(skips)
            skip = skips.pop()
            h = block(h, skip if self.se is None or not self.long_skips else self.se(skip, number))
        pixels = self.decoder_pred(self.norm(h))[:, self.extras :]
        out: Tensor = self.final_layer(self._unpatchify(pixels))
        return out

    def _extra_tokens(self, tau: Tensor, condition: Tensor | None) -> list[Tensor]:
        """Tokens before the patches, each (B, 1 or context_tokens, D)."""
        time = self.time_embed(timestep_features(tau, self.width))[:, None]
        if self.label_emb is None and self.context_embed is None:
            return [time]
        if condition is None:
            raise UsageError(f"this U-ViT needs {'a text' if self.context_tokens else 'class labels'}")
        if self.context_embed is not None:
            expected = (self.context_tokens, self.context_dim)
            if condition.shape[1:] != expected:
                raise UsageError(f"a text of shape {tuple(condition.shape[1:])}, this U-ViT takes {expected}")
            return [time, self.context_embed(condition)]
        assert self.label_emb is not None
        rows = self.label_emb.num_embeddings
        if condition.device.type == "cpu" and not bool(((condition >= 0) & (condition < rows)).all()):
            raise UsageError(f"a label is outside of the table of {rows} rows, 0 to {rows - 1}")
        return [self.label_emb(condition)[:, None], time]

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, T, row in the patch x column in the patch x channel) -> (B, C, R, R)."""
        p, g = self.patch_size, self.img_resolution // self.patch_size
        pixels = tokens.reshape(-1, g, g, p, p, self.in_channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, g * p, g * p)

"""DiT: the isotropic diffusion transformer of Peebles and Xie 2022 (arXiv 2212.09748), U-DiT's baseline."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.dit_layers import (
    XAVIER,
    ZERO,
    LabelEmbedder,
    PatchEmbedding,
    TimestepEmbedder,
    attend,
    check_counts,
    check_divisible,
    layer_norm,
    modulate,
    modulation_head,
    split_heads,
)
from repro.models.layers import Linear
from repro.models.skips import SkipScaling


class Size(NamedTuple):
    """Depth, heads and channels a head of one of the paper's sizes (its Table 1); the width is the heads' product."""

    depth: int
    num_heads: int
    head_channels: int


SIZES = {"S": Size(12, 6, 64), "B": Size(12, 12, 64), "L": Size(24, 16, 64), "XL": Size(28, 16, 72)}
PATCHES = (2, 4, 8)


def positions(width: int, grid: int) -> Tensor:
    """Sine-cosine table of a square grid: (grid^2, width) float64, rows in row-major order of the tokens.

    The first half of the channels encodes the column, the second the row; each is [sines, cosines] of the position
    times 10000^(-k / (width / 4)). ValueError unless 4 divides the width.
    """
    if width % 4:
        raise ValueError(f"the position table needs a width divisible by 4, not {width}")
    quarter = width // 4
    with torch.device("cpu"):
        rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates
        one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
        return torch.cat([one.repeat(grid, 1), one.repeat_interleave(grid, 0)], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention. x: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{width} channels cannot be split into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, init=XAVIER)
        self.proj = Linear(width, width, init=XAVIER)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.proj(attend(*split_heads(self.qkv(x), self.num_heads)))
        return projected


class Mlp(nn.Module):
    """Linear, tanh-approximated GELU, linear. x: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, init=XAVIER)
        self.fc2 = Linear(hidden, width, init=XAVIER)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return projected


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (adaLN-zero; Figure 3 of the paper).

    x: (N, T, width), c: (N, width) -> (N, T, width).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = modulation_head(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        parts = self.adaLN_modulation(c).to(x.dtype)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        x = torch.addcmul(x, gate, self.attn(modulate(layer_norm(x), shift, scale)))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer to pixels. x: (N, T, width), c: (N, width) -> (N, T, patch^2 out_channels)."""

    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, patch_size**2 * out_channels, init=ZERO)
        self.adaLN_modulation = modulation_head(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).to(x.dtype)[:, None].chunk(2, dim=2)
        pixels: Tensor = self.linear(modulate(layer_norm(x), shift, scale))
        return pixels


class DiT(nn.Module):
    """The network of one size and patch: `DiT(**SIZES["XL"]._asdict(), patch_size=2)`; the defaults are DiT-XL/2.

    Args:
        img_resolution: pixels of a side of the latents, divisible by the patch.
        in_channels: channels of the latents.
        label_dim: classes; 0 for an unconditional network.
        patch_size: pixels of a token's side.
        depth: blocks.
        num_heads, head_channels: attention heads and their width; the network is num_heads head_channels wide.
        mlp_ratio: hidden width of the MLPs over the network's.
        class_dropout: probability with which training drops a label; 0 also leaves the null class out of the table.
        learn_sigma: twice as many output channels, the second half for the variance.
        skip_scaling: there is nothing to scale: UsageError for any.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "label_dim": "classes",
        "depth": "blocks",
        "head_channels": "head_channels",
        "num_heads": "heads",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}
    label_draws = 1
    """Embedders that drop labels, each with a draw of its own."""

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 4,
        label_dim: int = 1000,
        patch_size: int = 2,
        depth: int = 28,
        num_heads: int = 16,
        head_channels: int = 72,
        mlp_ratio: float = 4.0,
        class_dropout: float = 0.1,
        learn_sigma: bool = True,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        if skip_scaling is not None:
            raise UsageError(f"DiT has no long skips, to which {skip_scaling.label} could apply")
        check_counts("DiT", num_heads=num_heads, head_channels=head_channels, patch_size=patch_size)
        check_divisible("a latent", [img_resolution], patch_size, "the patch")
        width = num_heads * head_channels
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.patch_size = patch_size
        self.class_dropout = class_dropout
        self.learn_sigma = learn_sigma
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        grid = img_resolution // patch_size
        table = torch.empty(1, grid**2, width)
        self.pos_embed: Tensor  # of the state dict, never trained
        self.register_buffer("pos_embed", table if table.is_meta else positions(width, grid).float()[None])
        self.x_embedder = PatchEmbedding(in_channels, width, patch_size, patch_size)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(label_dim, width, class_dropout) if label_dim else None
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size, self.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        """x: (N, in_channels, R, R) noisy latents; t: (N,) timesteps of the 1000-step process; y: (N,) int64 labels,
        `label_dim` for no class; drop: (N, 1), nonzero where a label is dropped. Returns (N, out_channels, R, R)."""
        if x.shape[2:] != (self.img_resolution, self.img_resolution):
            raise ValueError(f"this DiT takes {self.img_resolution} pixels a side, not {tuple(x.shape[2:])}")
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            assert y is not None, "a conditional network needs labels"
            c = c + self.y_embedder(y, None if drop is None else drop[:, 0])
        h = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            h = block(h, c)
        return self._unpatchify(self.final_layer(h, c))

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """(N, T, row in the patch x column in the patch x channel) -> (N, out_channels, R, R)."""
        p, g = self.patch_size, self.img_resolution // self.patch_size
        pixels = tokens.reshape(-1, g, g, p, p, self.out_channels)
        return torch.einsum("nijyxc->nciyjx", pixels).reshape(-1, self.out_channels, g * p, g * p)

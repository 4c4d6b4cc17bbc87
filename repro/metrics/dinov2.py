"""The class token of DINOv2 ViT-L/14 (Oquab et al. 2023), the feature of FD-DINOv2 (Stein et al. 2023; EDM2).

The network is a plain vision transformer with layer scale, under the published names of its state dict. Its position
table is made for 37x37 patches and is interpolated to 16x16 here. UNVERIFIED: the interpolation is written from its
description (bicubic, no antialiasing, the scale taken with an offset of 0.1) and was never held against the published
model's output; `VERIFIED` is False until it is, and every FD-DINOv2 says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VERIFIED = False
DIM = 1024
DEPTH = 24
HEADS = 16
PATCH = 14
TABLE_SIDE = 37
INTERPOLATION_OFFSET = 0.1


class DINOv2(nn.Module):
    """Vision transformer; the defaults are ViT-L/14.

    Args:
        dim: width. depth: blocks. heads: attention heads. side: patches a side of the position table.
    """

    def __init__(self, dim: int = DIM, depth: int = DEPTH, heads: int = HEADS, side: int = TABLE_SIDE) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2 + 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # only in training; part of the file
        self.patch_embed = _PatchEmbed(dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised class token.

        Args:
            x: (N, 3, H, W) float32, H and W multiples of 14, normalised as `repro.metrics.resize.dino_input` does.

        Returns:
            (N, dim) float32.
        """
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        tokens = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        return torch.as_tensor(self.norm(tokens)[:, 0])

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows columns, dim): the position table at another grid. Unverified (see the module's text)."""
        table = self.pos_embed[:, 1:]
        side = int(table.shape[1] ** 0.5)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = [(n + INTERPOLATION_OFFSET) / side for n in (rows, columns)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        if grid.shape[2:] != (rows, columns):
            raise ValueError(f"the position table became {tuple(grid.shape[2:])}, not {(rows, columns)}")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return torch.as_tensor(self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim)))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc2(F.gelu(self.fc1(x))))


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads)
        self.ls1 = _LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim)
        self.ls2 = _LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return torch.as_tensor(x + self.ls2(self.mlp(self.norm2(x))))


def from_state(state: Mapping[str, Tensor]) -> DINOv2:
    """The network with some weights, in eval mode on the CPU; its size follows from the shapes.

    Raises:
        ValueError: keys or shapes that are not those of such a network; names the first.
    """
    try:
        dim = state["cls_token"].shape[-1]
        side = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    except (KeyError, IndexError):
        raise ValueError("key 'cls_token' or 'pos_embed' is missing") from None
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if dim % 64 or not 0 < dim <= 4096 or not 0 < depth <= 64:
        raise ValueError(f"no network of width {dim} and depth {depth}")
    with torch.device("meta"):
        network = DINOv2(dim, depth, dim // 64, side)
    wanted = network.state_dict()
    for key in [*wanted, *state]:
        if key not in wanted or key not in state:
            raise ValueError(f"key {key!r} is {'missing' if key in wanted else 'not one of the network'}")
        if wanted[key].shape != state[key].shape:
            raise ValueError(f"{key} has shape {tuple(state[key].shape)}, {tuple(wanted[key].shape)} expected")
    network.load_state_dict(dict(state), assign=True)
    return network.eval().requires_grad_(False)

"""How a sampler's float image becomes 8 bits: part of a protocol, half a level of difference shows in a FID."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repro.diffusion.images import to_uint8


def rounded(x: Tensor) -> Tensor:
    """U-ViT and ScaleLong: v = clip((x + 1) / 2, 0, 1), then floor(255 v + 0.5). x: any shape, nominally in [-1, 1]."""
    v = (0.5 * (_checked(x) + 1)).clamp(0, 1)
    return (v * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def unit_truncated(x: Tensor) -> Tensor:
    """EDM2's latent models: clip(v, 0, 1) * 255 truncated. x: the decoder's raw output, nominally in [0, 1]."""
    return (_checked(x).clamp(0, 1) * 255).to(torch.uint8)


def _checked(x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        raise ValueError("images contain NaN")
    return x.to(torch.float32)


QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "truncate": to_uint8,  # EDM, EDM2's pixel models, U-DiT: clip(127.5 x + 128, 0, 255), truncated
    "round": rounded,
    "unit_truncate": unit_truncated,
}

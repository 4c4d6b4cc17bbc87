"""Images as 8-bit values and as tensors in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(x: Tensor) -> Tensor:
    """8-bit values 0 ... 255 -> float32 in [-1, 1], any shape."""
    return x.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Images, nominally in [-1, 1] -> uint8: truncation of clip(127.5 x + 128, 0, 255), any shape.

    Computed in the sampler's precision, as published: float64 where it is (EDM), else float32 (EDM2, U-DiT), which
    decides at the boundaries between two levels. NaN has no 8-bit value and raises ValueError.
    """
    values = (x if x.dtype == torch.float64 else x.to(torch.float32)) * 127.5 + 128
    if torch.isnan(values).any():
        raise ValueError("images contain NaN")
    return values.clip(0, 255).to(torch.uint8)

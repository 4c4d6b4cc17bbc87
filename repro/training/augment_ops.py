"""Deterministic parts of the augmentation: matrices, band-limited warping, reflected shifts, colour maps.

Matrices act on column vectors of homogeneous coordinates, in pixels (Karras et al. 2020, Appendix B).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Decomposition low-pass filter of the sym6 wavelet.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
PAD = len(SYM6) // 4
# Projection on the grey axis (1, 1, 1) / sqrt(3) of RGB, homogeneous.
LUMA_PROJECTION = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]) / 3


def _matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """(N, R, C) from entries that are numbers or (N,) tensors."""
    entries = [entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for row in rows for entry in row]
    return torch.stack(entries, dim=-1).reshape(*like.shape, len(rows), len(rows[0]))


def translate2d(tx: Tensor, ty: Tensor) -> Tensor:
    """(N, 3, 3) shift by (tx, ty), each (N,)."""
    return _matrix([[1, 0, tx], [0, 1, ty], [0, 0, 1]], tx)


def scale2d(sx: Tensor, sy: Tensor) -> Tensor:
    """(N, 3, 3) scaling by (sx, sy), each (N,)."""
    return _matrix([[sx, 0, 0], [0, sy, 0], [0, 0, 1]], sx)


def rotate2d(angle: Tensor) -> Tensor:
    """(N, 3, 3) rotation by an angle (N,) in radians."""
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle)


def translate3d(shift: Tensor) -> Tensor:
    """(N, 4, 4) shift of all three colours by (N,)."""
    return _matrix([[1, 0, 0, shift], [0, 1, 0, shift], [0, 0, 1, shift], [0, 0, 0, 1]], shift)


def scale3d(factor: Tensor) -> Tensor:
    """(N, 4, 4) scaling of all three colours by (N,)."""
    return _matrix([[factor, 0, 0, 0], [0, factor, 0, 0], [0, 0, factor, 0], [0, 0, 0, 1]], factor)


def rotate_luma(angle: Tensor) -> Tensor:
    """(N, 4, 4) rotation of RGB about the grey axis by (N,) radians (Rodrigues' formula)."""
    cross = torch.zeros(4, 4)
    cross[:3, :3] = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rgb = torch.diag(torch.tensor([1.0, 1, 1, 0]))
    return torch.eye(4) - rgb + cos * rgb + (1 - cos) * LUMA_PROJECTION + sin * cross


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold integer coordinates into 0 ... size - 1 by mirroring at the centres of the border pixels."""
    last = size - 1
    return torch.zeros_like(index) if last == 0 else last - (last - index % (2 * last)).abs()


def shift_reflected(images: Tensor, tx: Tensor, ty: Tensor) -> Tensor:
    """output(x, y) = input(reflect(x - tx), reflect(y + ty)). images: (N, C, H, W); tx, ty: (N,) int64."""
    height, width = images.shape[2:]
    x = _reflect(torch.arange(width) - tx[:, None], width)
    y = _reflect(torch.arange(height) + ty[:, None], height)
    flat = (y[:, :, None] * width + x[:, None, :]).flatten(1).to(images.device)
    return images.flatten(2).gather(2, flat[:, None].expand(-1, images.shape[1], -1)).reshape(images.shape)


def _margins(g: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels (left, right, top, bottom) that the images must be padded by so that g (N, 3, 3) finds what it needs."""
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-cx, cx, cx, -cx], [-cy, -cy, cy, cy], [1, 1, 1, 1]])
    points = (g @ corners)[..., :2, :].reshape(-1, 2, 4)
    x, y = points[:, 0], points[:, 1]
    need = torch.stack([(-x).max() - cx, x.max() - cx, (-y).max() - cy, y.max() - cy]) + 2 * PAD
    limit = torch.tensor([width - 1, width - 1, height - 1, height - 1])
    left, right, top, bottom = need.clip(min=0).minimum(limit).ceil().to(torch.int64).tolist()
    return left, right, top, bottom


def _shift(x: float, y: float) -> Tensor:
    return translate2d(torch.tensor(float(x)), torch.tensor(float(y)))


def _stretch(x: float, y: float) -> Tensor:
    return scale2d(torch.tensor(float(x)), torch.tensor(float(y)))


@functools.lru_cache(maxsize=64)
def _doubling(size: int) -> Tensor:
    """(size, 2 size): twice the samples of a row by the wavelet's synthesis filter, as a matrix from the right.

    A transposed convolution with padding 5 is the correlation of the zero-stuffed row (2 n - 1 samples, padding 6) with
    the reversed filter. As a matrix it costs a tenth of that convolution at small sizes.
    """
    rows, f = torch.eye(size)[:, None], torch.tensor(SYM6)[None, None]
    return F.conv_transpose1d(rows, f, stride=2, padding=(len(SYM6) - 1) // 2)[:, 0]


@functools.lru_cache(maxsize=64)
def _halving(size: int) -> Tensor:
    """(size, size / 2 - 2 PAD): half the samples of a row by the analysis filter, cropped by PAD at each end."""
    rows, f = torch.eye(size)[:, None], torch.tensor(SYM6)[None, None]
    return F.conv1d(rows, f, stride=2, padding=(len(SYM6) - 1) // 2)[:, 0, PAD:-PAD].contiguous()


def _separably(images: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Apply a matrix of the length of rows and columns to both axes of images (N, C, H, W)."""
    columns, rows = (matrix(size).to(images) for size in images.shape[2:])
    return columns.T @ (images @ rows)


def warp(images: Tensor, g: Tensor) -> Tensor:
    """Resample images by g without aliasing: reflect, double the resolution, interpolate bilinearly, halve it.

    images: (N, C, H, W); g: (N, 3, 3) on the CPU, output to input coordinates in pixels, origin at the image centre.
    The margin is common to all images, so that an image depends on the rest of its batch by rounding only.
    """
    n, channels, height, width = images.shape
    left, right, top, bottom = _margins(g, height, width)
    images = F.pad(images, (left, right, top, bottom), mode="reflect")
    g = _shift((left - right) / 2, (top - bottom) / 2) @ g
    images = _separably(images, _doubling)
    g = _stretch(2, 2) @ g @ _stretch(0.5, 0.5)
    g = _shift(-0.5, -0.5) @ g @ _shift(0.5, 0.5)
    target_h, target_w = (height + 2 * PAD) * 2, (width + 2 * PAD) * 2
    g = _stretch(2 / images.shape[3], 2 / images.shape[2]) @ g @ _stretch(target_w / 2, target_h / 2)
    theta = g.expand(n, 3, 3)[:, :2].to(images.device, images.dtype)
    grid = F.affine_grid(theta, [n, channels, target_h, target_w], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _separably(images, _halving)


def recolour(images: Tensor, m: Tensor) -> Tensor:
    """Apply the affine RGB map m (N, 4, 4) to images (N, C, H, W), C = 3, or its grey average if C = 1. Not clipped."""
    n, channels = images.shape[:2]
    if channels not in (1, 3):
        raise ValueError(f"colour transformations need 1 or 3 channels, not {channels}")
    m = m.expand(n, 4, 4).to(images.device, images.dtype)
    if channels == 1:
        row = m[:, :3].mean(dim=1)
        return images * row[:, :3].sum(dim=1)[:, None, None, None] + row[:, 3][:, None, None, None]
    return torch.einsum("nij,njhw->nihw", m[:, :3, :3], images) + m[:, :3, 3, None, None]

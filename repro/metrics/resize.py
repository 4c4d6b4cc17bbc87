"""uint8 images -> the input of an extractor: three protocols for Inception that do not agree, and DINOv2's.

| protocol | resize to 299x299 | scaling |
| tf1 | TensorFlow 1 bilinear: corner anchored, no antialiasing | (v - 128) / 128 |
| legacy_pytorch | torch bilinear with half-pixel centres, no antialiasing | 2 v / 255 - 1 |
| clean | Pillow bicubic with antialiasing, each channel in float, clipped and not rounded | (v - 128) / 128 |

Parmar et al. 2022 show how far apart they are; no FID of one may be compared with that of another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 299
DINO_SIZE = 224
DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)


def resize_tf1(images: Tensor, size: int = SIZE) -> Tensor:
    """TensorFlow 1's bilinear resize: output j reads the source at j * in / size, neighbours clamped to the edge.

    Args:
        images: (N, C, H, W) uint8.
        size: of the result.

    Returns:
        (N, C, size, size) float32 in 0..255, on the device of the images.
    """
    x = images.to(torch.float32)
    y_low, y_high, dy = _tf1_positions(x.shape[2], size, x.device)
    x_low, x_high, dx = _tf1_positions(x.shape[3], size, x.device)
    rows = []
    for index in (y_low, y_high):
        row = x.index_select(2, index)
        left, right = row.index_select(3, x_low), row.index_select(3, x_high)
        rows.append(left + (right - left) * dx)
    top, bottom = rows
    return top + (bottom - top) * dy[:, None]


def _tf1_positions(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper neighbour (int64) and weight of the upper one, for each output; the step is a float32."""
    step = torch.tensor(length / size, dtype=torch.float32)
    source = torch.arange(size, dtype=torch.float32) * step
    low = source.floor()
    high = (low + 1).clamp(max=length - 1)
    return low.long().to(device), high.long().to(device), (source - low).to(device)


def resize_legacy_pytorch(images: Tensor, size: int = SIZE) -> Tensor:
    """PyTorch's bilinear resize with half-pixel centres and without antialiasing. Arguments as in `resize_tf1`."""
    return F.interpolate(images.to(torch.float32), size=(size, size), mode="bilinear", align_corners=False)


def resize_clean(images: Tensor, size: int = SIZE) -> Tensor:
    """Pillow's bicubic resize with antialiasing, channel by channel in float32, clipped to 0..255 and not rounded.

    On the CPU whatever the device. Arguments as in `resize_tf1`.
    """
    from PIL import Image

    planes = images.cpu().numpy().astype(np.float32)
    result = np.empty((*planes.shape[:2], size, size), dtype=np.float32)
    for n, image in enumerate(planes):
        for c, plane in enumerate(image):
            result[n, c] = np.asarray(Image.fromarray(plane).resize((size, size), resample=Image.Resampling.BICUBIC))
    return torch.from_numpy(result.clip(0, 255)).to(images.device)


def scale_tf(x: Tensor) -> Tensor:
    """(v - 128) / 128: 0..255 to -1..0.992."""
    return (x - 128) / 128


def scale_pytorch(x: Tensor) -> Tensor:
    """2 v / 255 - 1: 0..255 to -1..1."""
    return 2 * (x / 255) - 1


INCEPTION_INPUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tf1": (resize_tf1, scale_tf),
    "legacy_pytorch": (resize_legacy_pytorch, scale_pytorch),
    "clean": (resize_clean, scale_tf),
}
"""Protocol -> (resize, scaling)."""


def dino_input(images: Tensor) -> Tensor:
    """What EDM2 feeds to DINOv2: bicubic resize with antialiasing to 224x224 on floats, ImageNet's mean and deviation.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N, 3, 224, 224) float32.
    """
    x = F.interpolate(
        images.to(torch.float32), size=(DINO_SIZE, DINO_SIZE), mode="bicubic", align_corners=False, antialias=True
    )
    mean, std = (torch.tensor(v, device=x.device).reshape(1, 3, 1, 1) for v in (DINO_MEAN, DINO_STD))
    return (x / 255 - mean) / std

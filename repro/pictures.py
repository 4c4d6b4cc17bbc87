"""Pictures of generated images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from repro.files import write_atomic


def write_grid(path: Path, images: Tensor, columns: int = 10, pixels: int = 64) -> None:
    """Write (N, C, H, W) uint8 images as one PNG grid, row by row, small ones enlarged to at least `pixels`."""
    count, channels, height, width = images.shape
    factor = max(1, pixels // height)
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, channels), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    picture = picture.resize((columns * width * factor, rows * height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())

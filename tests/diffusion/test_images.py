"""8-bit images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repro.diffusion.images import from_uint8, to_uint8


def test_all_values_return() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    images = from_uint8(values)
    assert images.dtype == torch.float32
    assert (images[0].item(), images[255].item()) == (-1, 1)
    assert torch.equal(to_uint8(images), values)


def test_truncation_and_clipping() -> None:
    x = torch.tensor([-5.0, -1, -0.996, 0, 0.0039, 0.0040, 1, 5], dtype=torch.float64)
    assert to_uint8(x).tolist() == [0, 0, 1, 128, 128, 128, 255, 255]
    assert to_uint8(torch.tensor([1 / 127.5], dtype=torch.float64)).item() == 129


def test_boundaries_between_levels_are_those_of_the_samplers_precision() -> None:
    x = ((np.arange(256) - 128) / 127.5).astype(np.float32)
    single = np.clip(x * np.float32(127.5) + np.float32(128), 0, 255).astype(np.uint8)
    double = np.clip(x.astype(np.float64) * 127.5 + 128, 0, 255).astype(np.uint8)
    assert (single != double).any()
    assert to_uint8(torch.from_numpy(x)).tolist() == single.tolist()
    assert to_uint8(torch.from_numpy(x).double()).tolist() == double.tolist()


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))

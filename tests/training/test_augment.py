"""Augmentation: identities, hand-computed transformations, slicing of the draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repro.diffusion.draws import StepDraws
from repro.training import augment_ops as ops
from repro.training.augment import AugmentPipe

EDM: dict[str, float] = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
EVERYTHING: dict[str, float] = dict(
    **EDM, rotate_int=1, translate_int=1, brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1
)


class Script:
    """Draws whose parameter values are given; every gate draw (the second of each pair) is 0, that is: active."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def _take(self, shape: Sequence[int]) -> Tensor:
        return torch.as_tensor(self.values.pop(0)).expand(list(shape)).clone()

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._take(shape).float()

    randn = rand

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._take(shape).long()


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_p_zero_is_the_identity(size: int, channels: int) -> None:
    pipe = AugmentPipe(p=0, **{key: 1 for key in EVERYTHING})
    images = torch.randn(4, channels, size, size)
    out, labels = pipe(images, StepDraws(0, 0, 4))
    assert torch.allclose(out, images, atol=2e-5)
    assert labels.shape == (4, pipe.label_dim) == (4, 19)
    assert not labels.any()


def test_absent_pipe_changes_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    out, labels = AugmentPipe()(images, StepDraws(0, 0, 2))
    assert torch.equal(out, images)
    assert labels.shape == (2, 0)


def test_edm_setting_has_nine_labels() -> None:
    pipe = AugmentPipe(p=0.12, **EDM)
    assert pipe.label_dim == 9
    out, labels = pipe(torch.randn(5, 3, 8, 8), StepDraws(0, 0, 5))
    assert out.shape == (5, 3, 8, 8)
    assert labels.shape == (5, 9)
    assert labels.dtype == torch.float32


def test_flips_only() -> None:
    images = torch.randn(64, 1, 4, 4)
    out, labels = AugmentPipe(xflip=1e8)(images, StepDraws(0, 0, 64))
    flipped = labels[:, 0] == 1
    assert 16 < int(flipped.sum()) < 48
    assert torch.equal(out[flipped], images[flipped].flip(3))
    assert torch.equal(out[~flipped], images[~flipped])
    out, labels = AugmentPipe(yflip=1e8)(images, StepDraws(0, 0, 64))
    assert torch.equal(out[labels[:, 0] == 1], images[labels[:, 0] == 1].flip(2))


def test_probability_of_a_transformation() -> None:
    _, labels = AugmentPipe(p=0.12, brightness=1)(torch.zeros(10000, 1, 1, 1), StepDraws(0, 0, 10000))
    assert float((labels != 0).float().mean()) == pytest.approx(0.12, abs=0.015)


@pytest.mark.parametrize(("turns", "labels"), [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (3, [0, 1])])
def test_quarter_turns(turns: int, labels: list[float]) -> None:
    images = torch.randn(1, 2, 4, 4)
    out, got = AugmentPipe(rotate_int=1)(images, Script(turns, 0.0))
    assert torch.equal(out, torch.rot90(images, turns, (2, 3)))
    assert got.tolist() == [labels]


def test_integer_shift_with_reflection() -> None:
    row = torch.arange(8.0)
    images = (row[None, :] + 10 * row[:, None]).expand(1, 1, 8, 8)
    # u = (1, 0) gives w = (1, -1): one pixel (an eighth of the width) to the right, and up by y + ty.
    out, labels = AugmentPipe(translate_int=1)(images, Script(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1, 1), 0.0))
    expected_x = torch.tensor([1.0, 0, 1, 2, 3, 4, 5, 6])
    expected_y = torch.tensor([1.0, 0, 1, 2, 3, 4, 5, 6])
    assert torch.equal(out[0, 0], expected_x[None, :] + 10 * expected_y[:, None])
    assert labels.tolist() == [[1.0, -1.0]]


def test_fractional_shift_by_whole_pixels() -> None:
    images = torch.randn(1, 1, 16, 16)
    w = torch.tensor([2 / (16 * 0.125), -1 / (16 * 0.125)]).reshape(2, 1)
    out, labels = AugmentPipe(translate_frac=1)(images, Script(w, 0.0))
    shifted = images.roll((2, -1), (3, 2))
    assert torch.allclose(out[..., 4:-4, 4:-4], shifted[..., 4:-4, 4:-4], atol=1e-4)
    assert torch.allclose(labels[0], w[:, 0])


def test_geometric_labels() -> None:
    images = torch.randn(1, 1, 8, 8)
    _, labels = AugmentPipe(rotate_frac=1)(images, Script(0.75, 0.0))
    assert labels[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)  # a quarter turn
    _, labels = AugmentPipe(aniso=1)(images, Script(2.0, 0.75, 0.0, 0.0))
    assert labels[0].tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    _, labels = AugmentPipe(aniso=1)(images, Script(2.0, 0.75, 0.0, 0.6))  # axis gate closed: not rotated
    assert labels[0].tolist() == pytest.approx([2.0, 0.0], abs=1e-6)


def test_isotropic_scaling_of_a_ramp() -> None:
    """s = 2^{0.2 w}: a linear ramp about the centre becomes flatter by s (interior pixels)."""
    x = torch.arange(32.0) - 15.5
    images = x.expand(1, 1, 32, 32).clone()
    out, _ = AugmentPipe(scale=1)(images, Script(2.5, 0.0))
    slope = out[0, 0, 16, 10:22].diff()
    assert slope.mean().item() == pytest.approx(1 / 2**0.5, rel=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast(channels: int) -> None:
    images = torch.randn(1, channels, 4, 4)
    out, labels = AugmentPipe(brightness=1, contrast=1)(images, Script(1.5, 0.0, 2.0, 0.0))
    assert torch.allclose(out, (images + 0.3) * 2, atol=1e-5)
    assert labels.tolist() == [[1.5, 2.0]]


def test_hue_by_a_third_of_a_turn_permutes_colours() -> None:
    images = torch.randn(1, 3, 4, 4)
    out, labels = AugmentPipe(hue=1)(images, Script(0.5 + 1 / 3, 0.0))
    assert torch.allclose(out, images.roll(1, 1), atol=1e-5)
    assert labels[0].tolist() == pytest.approx([-1.5, math.sqrt(0.75)], abs=1e-5)


def test_saturation_and_luma_flip_of_grey() -> None:
    grey = torch.randn(1, 1, 4, 4).expand(1, 3, 4, 4)
    out, _ = AugmentPipe(saturation=1)(grey, Script(3.0, 0.0))
    assert torch.allclose(out, grey, atol=1e-5)
    out, _ = AugmentPipe(lumaflip=1)(grey, Script(1, 0.0))
    assert torch.allclose(out, -grey, atol=1e-5)


def test_saturation_scales_colour_differences() -> None:
    images = torch.randn(1, 3, 4, 4)
    out, _ = AugmentPipe(saturation=1)(images, Script(1.0, 0.0))
    mean = images.mean(1, keepdim=True)
    assert torch.allclose(out, mean + 2 * (images - mean), atol=1e-5)


def test_colours_need_one_or_three_channels() -> None:
    with pytest.raises(ValueError, match="not 2"):
        AugmentPipe(hue=1)(torch.zeros(1, 2, 4, 4), StepDraws(0, 0, 1))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), start=st.integers(0, 5))
def test_images_depend_on_their_batch_by_rounding_only(seed: int, start: int) -> None:
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    pipe = AugmentPipe(p=1.0, **EVERYTHING)
    whole, whole_labels = pipe(images, StepDraws(seed, 0, 6))
    part, labels = pipe(images[start : start + 1], StepDraws(seed, 0, 6, start, 1))
    assert torch.equal(labels, whole_labels[start : start + 1])
    assert torch.allclose(part, whole[start : start + 1], atol=1e-3 * float(whole[start].abs().max()))


def test_matrices() -> None:
    angle = torch.tensor([0.3, -1.2])
    turn = ops.rotate2d(angle)
    assert torch.allclose(turn @ ops.rotate2d(-angle), torch.eye(3).expand(2, 3, 3), atol=1e-6)
    moved = ops.translate2d(torch.tensor([2.0]), torch.tensor([3.0])) @ torch.tensor([1.0, 1, 1])
    assert moved.tolist() == [[3, 4, 1]]
    hue = ops.rotate_luma(angle)
    assert torch.allclose(hue @ hue.transpose(1, 2), torch.eye(4).expand(2, 4, 4), atol=1e-6)
    assert torch.allclose(hue @ torch.tensor([1.0, 1, 1, 0]), torch.tensor([1.0, 1, 1, 0]).expand(2, 4), atol=1e-6)

"""Non-leaky augmentation (Karras et al. 2022, Appendix F.2, Table 6; from Karras et al. 2020, adapted to diffusion)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repro.diffusion.draws import Draws
from repro.training import augment_ops as ops

PURPOSE = "augment"


class AugmentPipe:
    """Random transformations of clean images, and labels that tell the network which ones were applied.

    p: overall probability. xflip ... saturation: probability multipliers (0: transformation absent); a transformation
    is active for an image when u < multiplier p, and its parameters are 0 where it is not. A huge multiplier means
    always. *_std, *_max, aniso_rotate_prob: strengths, Table 6.

    Calling it maps images (N, C, H, W) float32 to (images, labels (N, label_dim) float32); geometric transformations
    keep the size, colour ones need C = 1 or 3. All draws have the purpose "augment".
    """

    def __init__(
        self,
        p: float = 1.0,
        xflip: float = 0,
        yflip: float = 0,
        rotate_int: float = 0,
        translate_int: float = 0,
        translate_int_max: float = 0.125,
        scale: float = 0,
        rotate_frac: float = 0,
        aniso: float = 0,
        translate_frac: float = 0,
        scale_std: float = 0.2,
        rotate_frac_max: float = 1,
        aniso_std: float = 0.2,
        aniso_rotate_prob: float = 0.5,
        translate_frac_std: float = 0.125,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        hue_max: float = 1,
        saturation_std: float = 1,
    ) -> None:
        self.p = p
        self.xflip = xflip
        self.yflip = yflip
        self.rotate_int = rotate_int
        self.translate_int = translate_int
        self.translate_int_max = translate_int_max
        self.scale = scale
        self.rotate_frac = rotate_frac
        self.aniso = aniso
        self.translate_frac = translate_frac
        self.scale_std = scale_std
        self.rotate_frac_max = rotate_frac_max
        self.aniso_std = aniso_std
        self.aniso_rotate_prob = aniso_rotate_prob
        self.translate_frac_std = translate_frac_std
        self.brightness = brightness
        self.contrast = contrast
        self.lumaflip = lumaflip
        self.hue = hue
        self.saturation = saturation
        self.brightness_std = brightness_std
        self.contrast_std = contrast_std
        self.hue_max = hue_max
        self.saturation_std = saturation_std

    @property
    def label_dim(self) -> int:
        """Width of the labels: what the network needs as augment_dim."""
        one = (self.xflip, self.yflip, self.scale, self.brightness, self.contrast, self.lumaflip, self.saturation)
        two = (self.rotate_int, self.translate_int, self.rotate_frac, self.aniso, self.translate_frac, self.hue)
        return sum(bool(multiplier) for multiplier in one) + 2 * sum(bool(multiplier) for multiplier in two)

    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        labels: list[Tensor] = [torch.zeros(images.shape[0], 0)]
        images = self._blit(images, draws, labels)
        images = self._warp(images, draws, labels)
        images = self._recolour(images, draws, labels)
        # Parameters stay on the CPU, where the draws are: margins and matrices then need no device synchronisation.
        return images, torch.cat([label.to(torch.float32) for label in labels], dim=1).to(images.device)

    def _gated(
        self, values: Tensor, multiplier: float, shape: Sequence[int], draws: Draws, batch_axis: int = 0
    ) -> Tensor:
        """The drawn parameter values, 0 for the images for which the transformation is not active."""
        return _gate(values, multiplier * self.p, shape, draws, batch_axis)

    def _blit(self, images: Tensor, draws: Draws, labels: list[Tensor]) -> Tensor:
        """Pixel-exact transformations: flips, quarter turns, whole-pixel shifts."""
        n, _, height, width = images.shape
        one = [n, 1, 1, 1]
        if self.xflip:
            w = self._gated(draws.randint(2, one, PURPOSE), self.xflip, one, draws)
            images = _where(w == 1, images.flip(3), images)
            labels.append(w.reshape(n, 1))
        if self.yflip:
            w = self._gated(draws.randint(2, one, PURPOSE), self.yflip, one, draws)
            images = _where(w == 1, images.flip(2), images)
            labels.append(w.reshape(n, 1))
        if self.rotate_int:
            w = self._gated(draws.randint(4, one, PURPOSE), self.rotate_int, one, draws)
            x_mirrored, y_mirrored = (w == 1) | (w == 2), (w == 2) | (w == 3)
            images = _where(x_mirrored, images.flip(3), images)
            images = _where(y_mirrored, images.flip(2), images)
            images = _where((w == 1) | (w == 3), images.transpose(2, 3), images)
            labels += [x_mirrored.reshape(n, 1), y_mirrored.reshape(n, 1)]
        if self.translate_int:
            drawn = draws.rand([2, *one], PURPOSE, batch_axis=1) * 2 - 1
            w = self._gated(drawn, self.translate_int, [1, *one], draws, batch_axis=1)
            extent_x, extent_y = width * self.translate_int_max, height * self.translate_int_max
            tx, ty = (w[0] * extent_x).round().to(torch.int64), (w[1] * extent_y).round().to(torch.int64)
            images = ops.shift_reflected(images, tx.flatten(), ty.flatten())
            labels += [(tx / extent_x).reshape(n, 1), (ty / extent_y).reshape(n, 1)]
        return images

    def _warp(self, images: Tensor, draws: Draws, labels: list[Tensor]) -> Tensor:
        """Geometric transformations, gathered in one matrix G from output to input pixels and applied at once."""
        if not (self.scale or self.rotate_frac or self.aniso or self.translate_frac):
            return images
        n, _, height, width = images.shape
        g = torch.eye(3)
        if self.scale:
            w = self._gated(draws.randn([n], PURPOSE), self.scale, [n], draws)
            s = (-self.scale_std * w).exp2()
            g = g @ ops.scale2d(s, s)
            labels.append(w[:, None])
        if self.rotate_frac:
            drawn = (draws.rand([n], PURPOSE) * 2 - 1) * (math.pi * self.rotate_frac_max)
            w = self._gated(drawn, self.rotate_frac, [n], draws)
            g = g @ ops.rotate2d(w)
            labels += [w.cos()[:, None] - 1, w.sin()[:, None]]
        if self.aniso:
            w = draws.randn([n], PURPOSE)
            r = (draws.rand([n], PURPOSE) * 2 - 1) * math.pi
            w = self._gated(w, self.aniso, [n], draws)
            # Not in the paper's table: the published networks were trained with the axis rotated half of the time only.
            r = _gate(r, self.aniso_rotate_prob, [n], draws)
            s = (self.aniso_std * w).exp2()
            g = g @ ops.rotate2d(-r) @ ops.scale2d(1 / s, s) @ ops.rotate2d(r)
            labels += [(w * r.cos())[:, None], (w * r.sin())[:, None]]
        if self.translate_frac:
            drawn = draws.randn([2, n], PURPOSE, batch_axis=1)
            w = self._gated(drawn, self.translate_frac, [1, n], draws, batch_axis=1)
            x_shift, y_shift = w[0] * (width * self.translate_frac_std), w[1] * (height * self.translate_frac_std)
            g = g @ ops.translate2d(-x_shift, -y_shift)
            labels += [w[0][:, None], w[1][:, None]]
        return ops.warp(images, g)

    def _recolour(self, images: Tensor, draws: Draws, labels: list[Tensor]) -> Tensor:
        """Colour transformations, gathered in one affine map M of RGB values and applied at once."""
        if not (self.brightness or self.contrast or self.lumaflip or self.hue or self.saturation):
            return images
        n = images.shape[0]
        m = torch.eye(4)
        if self.brightness:
            w = self._gated(draws.randn([n], PURPOSE), self.brightness, [n], draws)
            m = ops.translate3d(w * self.brightness_std) @ m
            labels.append(w[:, None])
        if self.contrast:
            w = self._gated(draws.randn([n], PURPOSE), self.contrast, [n], draws)
            m = ops.scale3d((w * self.contrast_std).exp2()) @ m
            labels.append(w[:, None])
        if self.lumaflip:
            w = self._gated(draws.randint(2, [n, 1, 1], PURPOSE), self.lumaflip, [n, 1, 1], draws)
            m = (torch.eye(4) - 2 * ops.LUMA_PROJECTION * w) @ m
            labels.append(w.reshape(n, 1))
        if self.hue:
            drawn = (draws.rand([n], PURPOSE) * 2 - 1) * (math.pi * self.hue_max)
            w = self._gated(drawn, self.hue, [n], draws)
            m = ops.rotate_luma(w) @ m
            labels += [w.cos()[:, None] - 1, w.sin()[:, None]]
        if self.saturation:
            w = self._gated(draws.randn([n, 1, 1], PURPOSE), self.saturation, [n, 1, 1], draws)
            chroma = torch.eye(4) - ops.LUMA_PROJECTION
            m = (ops.LUMA_PROJECTION + chroma * (w * self.saturation_std).exp2()) @ m
            labels.append(w.reshape(n, 1))
        return ops.recolour(images, m)


def _gate(values: Tensor, probability: float, shape: Sequence[int], draws: Draws, batch_axis: int = 0) -> Tensor:
    active = draws.rand(shape, PURPOSE, batch_axis=batch_axis) < probability
    return torch.where(active, values, torch.zeros_like(values))


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.to(a.device), a, b)

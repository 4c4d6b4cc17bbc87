"""Stored values <-> what a network sees: pixels, EDM2's and U-DiT's latents of ImageNet, U-ViT's latents of MS-COCO.

Every conversion of dtype and range is here and nowhere else. An encoder turns what a shard holds into float32 network
input, and network output back into what a VAE decoder takes, or into pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from repro.diffusion.images import from_uint8, to_uint8

VAEDecoder = Callable[[Tensor], Tensor]

# Statistics of the ft-mse VAE's latents over ImageNet-512 (Karras et al. 2024), and what they are normalised to.
EDM2_RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_RAW_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_FINAL_STD = 0.5
DIT_FACTOR = 0.18215
COCO_FACTOR = 0.23010
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Encoder(Protocol):
    """`encode` and `decode` between stored values and network values; `noisy` says whether encoding draws noise."""

    noisy: bool

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, x: Tensor, vae: VAEDecoder | None = None) -> Tensor: ...


class PixelEncoder:
    """8-bit pixels, and [-1, 1]."""

    noisy = False

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, C, H, W) uint8 -> float32, v / 127.5 - 1."""
        return from_uint8(stored)

    def decode(self, x: Tensor, vae: VAEDecoder | None = None) -> Tensor:
        """(N, C, H, W) float -> uint8, truncation of clip(127.5 x + 128, 0, 255)."""
        return to_uint8(x)


class EDM2Latents:
    """EDM2's ImageNet-512: shards hold 4 means, then 4 standard deviations, of the posterior of a VAE fed with [0, 1].

    A fresh normal draw is made at every use; channels are then brought to mean 0 and standard deviation 0.5
    (Karras et al. 2024, table 6; the usual factor 0.18215 is not used).
    """

    noisy = True

    def __init__(self) -> None:
        self.scale = EDM2_FINAL_STD / torch.tensor(EDM2_RAW_STD)
        self.bias = -torch.tensor(EDM2_RAW_MEAN) * self.scale

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, 8, h, w) float32 and (N, 4, h, w) standard normal -> (N, 4, h, w) float32."""
        mean, std = stored.to(torch.float32).chunk(2, dim=1)
        latents = mean.clone() if noise is None else (std * noise).add_(mean)
        return latents.mul_(_column(self.scale, latents)).add_(_column(self.bias, latents))

    def vae_input(self, x: Tensor) -> Tensor:
        """Network values (N, 4, h, w) -> what the VAE decoder takes."""
        return (x.to(torch.float32) - _column(self.bias, x)) / _column(self.scale, x)

    def decode(self, x: Tensor, vae: VAEDecoder | None = None) -> Tensor:
        """(N, 4, h, w) -> (N, 3, 8h, 8w) uint8: the decoder's [0, 1], clamped, times 255, truncated."""
        return (_needed(vae)(self.vae_input(x)).clamp(0, 1) * 255).to(torch.uint8)


class ScaledLatents:
    """DiT's and U-DiT's ImageNet: shards hold one sample of the posterior, times 0.18215, of a VAE fed with [-1, 1]."""

    noisy = False

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, 4, h, w) float32, unchanged."""
        return stored.to(torch.float32)

    def vae_input(self, x: Tensor) -> Tensor:
        """Network values (N, 4, h, w) -> what the VAE decoder takes."""
        return x / DIT_FACTOR

    def decode(self, x: Tensor, vae: VAEDecoder | None = None) -> Tensor:
        """(N, 4, h, w) -> (N, 3, 8h, 8w) uint8: limit(127.5 v + 128, 0, 255), truncated."""
        return to_uint8(_needed(vae)(self.vae_input(x)))


class MomentLatents:
    """U-ViT's MS-COCO: shards hold the posterior's 4 means, then its 4 log-variances, of a VAE fed with [-1, 1].

    Every use draws z = (mean + std n) 0.23010, the log-variance clamped to [-30, 20].
    """

    noisy = True

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, 8, h, w) float32 and (N, 4, h, w) standard normal -> (N, 4, h, w) float32."""
        mean, log_variance = stored.to(torch.float32).chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)) * noise
        return mean * COCO_FACTOR

    def vae_input(self, x: Tensor) -> Tensor:
        """Network values (N, 4, h, w) -> what the VAE decoder takes."""
        return x / COCO_FACTOR

    def decode(self, x: Tensor, vae: VAEDecoder | None = None) -> Tensor:
        """(N, 4, h, w) -> (N, 3, 8h, 8w) uint8: limit(127.5 v + 128, 0, 255), truncated."""
        return to_uint8(_needed(vae)(self.vae_input(x)))


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "pixels": PixelEncoder,
    "edm2": EDM2Latents,
    "dit": ScaledLatents,
    "coco": MomentLatents,
}


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device)[None, :, None, None]


def _needed(vae: VAEDecoder | None) -> VAEDecoder:
    if vae is None:
        raise ValueError("latents become pixels through a VAE decoder")
    return vae

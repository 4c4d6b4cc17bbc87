"""Losses of the variance-preserving diffusion (ScaleLong, and U-ViT, arXiv 2209.12152, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repro.diffusion.draws import Draws
from repro.diffusion.vp_sde import DiscreteBetas, VPDenoiser, expand
from repro.errors import UsageError


class NoiseLoss:
    """Mean squared error of the noise (or of x_0, where that is predicted) at uniform times; a number an image.

    Continuous time is uniform in [0, 1); of a discrete schedule every step is as likely.
    """

    def __call__(
        self, net: VPDenoiser, images: Tensor, labels: Tensor | None = None, *, augment: Any = None, draws: Draws
    ) -> Tensor:
        """(N,) losses. images: (N, C, H, W) in [-1, 1]; labels: (N, label_dim) one-hot, (N, tokens, width), or None.

        The draws are, in this order, "time", "noise" and, where training drops conditions, "label_dropout".
        """
        if augment is not None:
            raise UsageError("NoiseLoss has no augmentation: remove Trajectory.augment")
        count = images.shape[0]
        if isinstance(net.process, DiscreteBetas):
            t = (draws.randint(net.process.steps, [count], "time") + 1).to(torch.float64) / net.process.steps
        else:
            t = draws.rand([count], "time").to(torch.float64)
        t = t.to(images.device)
        noise = draws.randn(images.shape, "noise").to(images.device)
        if labels is not None and net.class_dropout:
            keep = (draws.rand([count], "label_dropout") >= net.class_dropout).to(labels)
            labels = labels * keep.reshape(-1, *[1] * (labels.ndim - 1))
        noisy = diffuse(net, images, t, noise)
        goal = noise if net.target == "noise" else images
        return (goal - net.raw(noisy, t, labels)).square().flatten(1).mean(1)


def diffuse(net: VPDenoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) noise. t: (N,)."""
    return expand(net.process.alpha(t), x0) * x0 + expand(net.process.sigma(t), x0) * noise

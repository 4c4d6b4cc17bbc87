"""Guidance by a second denoiser, and the sampler of Karras et al. 2024 (EDM2), which has it built in.

Classifier-free guidance and autoguidance differ in the guide alone: a network trained without labels, or a smaller or
less trained one with the same labels (Karras et al. 2024b, "Guiding a Diffusion Model with a Bad Version of Itself").
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from repro.diffusion.samplers import Callback, Denoiser, RandnLike, churn_gamma
from repro.diffusion.schedules import edm_sigmas
from repro.errors import UsageError


class Guided:
    """The denoiser D_guide + weight (D_main - D_guide); at weight 1 the guide is never called.

    Args:
        main: the network that is guided.
        guide: the network that guides; it gets the same labels, and ignores them if it was trained without.
        weight: 1 leaves `main` as it is, more pushes away from `guide`.
    """

    def __init__(self, main: Denoiser, guide: Denoiser, weight: float) -> None:
        check_guide(main, guide)
        self.main = main
        self.guide = guide
        self.weight = weight
        self.sigma_min = max(main.sigma_min, guide.sigma_min)
        self.sigma_max = min(main.sigma_max, guide.sigma_max)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.main.round_sigma(sigma)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        denoised = self.main(x, sigma, class_labels)
        if self.weight == 1:
            return denoised
        return self.guide(x, sigma, class_labels).lerp(denoised, self.weight)


def check_guide(main: object, guide: object) -> None:
    """UsageError where a guide has another resolution, other channels, or classes that are not those of `main`."""
    for name, what in (("img_resolution", "resolution"), ("img_channels", "image channels")):
        ours, theirs = getattr(main, name, None), getattr(guide, name, None)
        if ours is not None and theirs is not None and ours != theirs:
            raise UsageError(f"the guide's {what} is {theirs}, the main network's {ours}: they must be equal")
    ours, theirs = getattr(main, "label_dim", 0), getattr(guide, "label_dim", 0)
    if theirs and theirs != ours:
        raise UsageError(f"the guide has {theirs} classes, the main network {ours}: as many are needed, or none")


@torch.no_grad()
def edm2_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    guide: Denoiser | None = None,
    *,
    guidance: float = 1.0,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Tensor:
    """EDM's sampler of second order as EDM2 uses it: in float32, guided, deterministic by default.

    The contract is that of `repro.diffusion.samplers`, but for a result in float32 and noise that is drawn only in the
    steps that add some.

    guide: the guiding denoiser; needed where `guidance` is not 1. guidance: weight of the main network (see `Guided`).
    num_steps: N >= 2; each denoiser is called 2 N - 1 times.
    """
    if guidance != 1 and guide is None:
        raise UsageError(f"guidance {guidance:g} needs a guiding network; without one it is 1")
    if guide is not None:
        net = Guided(net, guide, guidance)
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    # In float32 from the start: its first level is a little below sigma_max, which decides where churn has its limits.
    levels = net.round_sigma(edm_sigmas(num_steps, low, high, rho, latents.device, torch.float32)).to(torch.float32)
    times = torch.cat([levels, torch.zeros_like(levels[:1])])
    x = latents.to(torch.float32) * times[0]
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(times)):
        gamma = churn_gamma(t_cur, num_steps, S_churn, S_min, S_max)
        t_hat = t_cur
        if gamma > 0:
            t_hat = net.round_sigma(t_cur + gamma * t_cur)
            x = x + (t_hat**2 - t_cur**2).sqrt() * S_noise * randn_like(x)
        slope = (x - net(x, t_hat, class_labels)) / t_hat
        x_next = x + (t_next - t_hat) * slope
        if i < num_steps - 1:
            other = (x_next - net(x_next, t_next, class_labels)) / t_next
            x_next = x + (t_next - t_hat) * (0.5 * slope + 0.5 * other)
        x = x_next
        if callback is not None:
            callback(i, num_steps)
    return x


edm2_sampler.UNITS = {"num_steps": "steps"}  # type: ignore[attr-defined]

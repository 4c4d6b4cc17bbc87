"""Samplers of a discrete diffusion: ancestral (Ho et al. 2020) and DDIM (Song et al. 2021), with guidance.

Their contract is that of `repro.diffusion.samplers`, but for a `DiscreteDenoiser` as network and a result in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from repro.diffusion.discrete import (
    Moments,
    Process,
    epsilon_from_x0,
    gather,
    model_moments,
    spaced_steps,
)
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.samplers import Callback, RandnLike
from repro.errors import UsageError

GUIDED_CHANNELS = 3
"""The published code guides the first three channels, whatever the number of latent channels is (four)."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float, channels: int = GUIDED_CHANNELS) -> Tensor:
    """Classifier-free guidance of a network's output (Ho and Salimans 2022): u + scale (c - u) in the first channels.

    The other channels, the fourth of epsilon and those of the variance, stay as `conditional` has them.
    """
    c, u = conditional[:, :channels], unconditional[:, :channels]
    return torch.cat([u + scale * (c - u), conditional[:, channels:]], dim=1)


def guided_forward(
    model: Callable[..., Tensor], x: Tensor, t: Tensor, y: Tensor, scale: float, channels: int = GUIDED_CHANNELS
) -> Tensor:
    """The published guided pass of DiT and U-DiT: 2n images of which the second half is ignored.

    x: (2n, C, H, W), t: (2n,), y: (2n,) int64, the classes and then the null class. Returns (2n, out_channels, H, W):
    both halves have the guided channels, and each its own others.
    """
    n = len(x) // 2
    output = model(torch.cat([x[:n], x[:n]]), t, y)
    conditional, unconditional = output[:n], output[n:]
    first = guide(conditional, unconditional, scale, channels)
    second = torch.cat([first[:, :channels], unconditional[:, channels:]], dim=1)
    return torch.cat([first, second])


def ancestral_step(moments: Moments, t: Tensor, noise: Tensor) -> Tensor:
    """x_{t-1} = mean + sd noise, without noise at t = 0. t: (N,)."""
    alive = (t != 0).to(noise).reshape(-1, *[1] * (noise.ndim - 1))
    return moments.mean + alive * (0.5 * moments.log_variance).exp() * noise


def ddim_step(process: Process, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, eta: float = 0.0) -> Tensor:
    """x_{t-1} from the predicted image (Song et al. 2021, Equation 12); at eta 1 as noisy as the ancestral one.

    In float32 from abar on, as published: at the first steps 1 - abar has few digits there.
    """
    abar, previous = gather(process.abar, t, x_t), gather(process.abar_prev, t, x_t)
    sd = eta * ((1 - previous) / (1 - abar)).sqrt() * (1 - abar / previous).sqrt()
    mean = previous.sqrt() * x0 + (1 - previous - sd.square()).sqrt() * epsilon_from_x0(process, x_t, t, x0)
    alive = (t != 0).to(noise).reshape(-1, *[1] * (noise.ndim - 1))
    return mean + alive * sd * noise


def ddim_reverse_step(process: Process, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_{t+1} from the predicted image: the deterministic step of `ddim_step` towards more noise."""
    following = gather(process.abar_next, t, x_t)
    return following.sqrt() * x0 + (1 - following).sqrt() * epsilon_from_x0(process, x_t, t, x0)


Step = Callable[[Process, Moments, Tensor, Tensor, Tensor], Tensor]
"""(process, its moments, x_t, t, noise) -> x_{t-1}."""


def ancestral(process: Process, moments: Moments, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The `Step` of ancestral sampling."""
    return ancestral_step(moments, t, noise)


def ddim(eta: float) -> Step:
    """The `Step` of DDIM sampling. UsageError where eta is not in 0 ... 1: beyond, a step has no variance left."""
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be 0 ... 1, not {eta:g}")
    return lambda process, moments, x_t, t, noise: ddim_step(process, moments.x0, x_t, t, noise, eta)


@torch.no_grad()
def sample(
    net: DiscreteDenoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    randn_like: RandnLike,
    callback: Callback | None,
    *,
    steps: str,
    step: Step,
    guidance: float = 1.0,
    guided_channels: int | None = GUIDED_CHANNELS,
    clip_denoised: bool = False,
) -> Tensor:
    """From unit noise to an image by `step`, from the last step of the process to the first.

    steps: those of the network's that are taken, see `spaced_steps`. The rest is that of `ancestral_sampler`.
    """
    process = net.process.respaced(steps)
    net = net.inference()
    evaluate = _evaluator(net, class_labels, guidance, guided_channels)
    settings: dict[str, Any] = {"clip": clip_denoised, "prediction": net.prediction, "variance": net.variance}
    x = latents.to(torch.float32)
    for done, index in enumerate(reversed(range(len(process)))):
        t = torch.full((x.shape[0],), index)
        told = process.timesteps[t].to(x.device)
        moments = model_moments(process, evaluate(x, told), x, t, **settings)
        noise = randn_like(x)  # drawn even where unused, as published: the same noise in any setting
        x = step(process, moments, x, t.to(x.device), noise)
        if callback is not None:
            callback(done, len(process))
    return x


def check_guidance(net: DiscreteDenoiser, guidance: float, labelled: bool = True) -> None:
    """UsageError where a network cannot be guided. labelled: whether it is given labels."""
    if guidance != 1 and not (net.has_null_class and labelled):
        raise UsageError(
            f"guidance {guidance:g} needs a class-conditional network with a null class, and this one "
            + ("is unconditional" if not net.label_dim else "has none" if labelled else "is given no labels")
            + "; its guidance can only be 1"
        )


def _evaluator(
    net: DiscreteDenoiser, class_labels: Tensor | None, guidance: float, guided_channels: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, t) -> the network's output, guided where guidance is not 1. UsageError where it cannot be."""
    check_guidance(net, guidance, class_labels is not None)
    if guidance == 1:
        return lambda x, t: net(x, t, class_labels)
    assert class_labels is not None
    channels = net.img_channels if guided_channels is None else min(guided_channels, net.img_channels)
    both = torch.cat([class_labels, torch.zeros_like(class_labels)])

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = net(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return guide(conditional, unconditional, guidance, channels)

    return evaluate


def ancestral_sampler(
    net: DiscreteDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    num_steps: int = 250,
    guidance: float = 1.0,
    guided_channels: int | None = GUIDED_CHANNELS,
    clip_denoised: bool = False,
) -> Tensor:
    """Ancestral sampling in fewer steps with the learned variance: how DiT and U-DiT are sampled.

    num_steps: of the network's steps, evenly spaced, the first and the last included. guidance: scale of classifier-
    free guidance, 1 for none. guided_channels: image channels that are guided, at most all of them; None for all.
    clip_denoised: limit predicted images to [-1, 1], which latents are not.
    """
    return sample(
        net, latents, class_labels, randn_like, callback, steps=str(num_steps), step=ancestral, guidance=guidance,
        guided_channels=guided_channels, clip_denoised=clip_denoised,
    )  # fmt: skip


def ddim_sampler(
    net: DiscreteDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    num_steps: int = 250,
    eta: float = 0.0,
    guidance: float = 1.0,
    guided_channels: int | None = GUIDED_CHANNELS,
    clip_denoised: bool = False,
) -> Tensor:
    """DDIM in the steps 0, i, 2i, ... of the process; there must be a stride i that gives `num_steps` of them.

    eta: noise of a step relative to the ancestral sampler's, 0 (deterministic) to 1. The other arguments are those of
    `ancestral_sampler`. The learned variance is not used.
    """
    return sample(
        net, latents, class_labels, randn_like, callback, steps=f"ddim{num_steps}", step=ddim(eta), guidance=guidance,
        guided_channels=guided_channels, clip_denoised=clip_denoised,
    )  # fmt: skip


def _evaluations(*, num_steps: int = 250, guidance: float = 1.0, **_: Any) -> int:
    """Network evaluations for one image: guidance takes two a step."""
    return num_steps * (1 if guidance == 1 else 2)


def _check(
    spacing: str, net: DiscreteDenoiser, *, num_steps: int = 250, guidance: float = 1.0, eta: float = 0.0, **_: Any
) -> None:
    """What sampling would refuse, known before there are weights: UsageError. spacing: before the number of steps."""
    spaced_steps(net.process.total, f"{spacing}{num_steps}")
    check_guidance(net, guidance)
    ddim(eta)


for _sampler, _spacing in ((ancestral_sampler, ""), (ddim_sampler, "ddim")):
    _sampler.UNITS = {"num_steps": "steps"}  # type: ignore[attr-defined]
    _sampler.NFE = _evaluations  # type: ignore[attr-defined]
    _sampler.CHECK = functools.partial(_check, _spacing)  # type: ignore[attr-defined]

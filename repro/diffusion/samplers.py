"""Samplers: plain functions from unit noise to images, all with one contract.

``sampler(net, latents, class_labels, randn_like, callback, *, <configuration>)``: net is a denoiser
D(x, sigma, labels) with attributes sigma_min, sigma_max and a method round_sigma; latents are (N, C, H, W) standard
normal; randn_like gives standard normal noise of the shape and dtype of its argument; callback(i, num_steps) is called
after step i. The result is (N, C, H, W) float64, nominally in [-1, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from repro.diffusion.schedules import edm_sigmas
from repro.errors import UsageError


class Denoiser(Protocol):
    """What a sampler needs of a network."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    def round_sigma(self, sigma: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor: ...


RandnLike = Callable[[Tensor], Tensor]
Callback = Callable[[int, int], None]


def churn_gamma(sigma: Tensor, num_steps: int, S_churn: float, S_min: float, S_max: float) -> float:
    """Relative noise increase of a step that starts at noise level sigma (Algorithm 2, line 4 of the loop)."""
    if not S_min <= float(sigma) <= S_max:
        return 0.0
    return min(S_churn / num_steps, math.sqrt(2) - 1)


@torch.no_grad()
def edm_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Tensor:
    """Stochastic sampler with second-order correction (Karras et al. 2022, Algorithm 2; deterministic at S_churn = 0).

    num_steps: N >= 2; the denoiser is called 2 N - 1 times. sigma_min and sigma_max are limited to what net supports.
    """
    steps = edm_sigmas(num_steps, max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max), rho, latents.device)
    steps = net.round_sigma(steps)
    times = torch.cat([steps, torch.zeros_like(steps[:1])])

    def derivative(x: Tensor, t: Tensor) -> Tensor:
        return (x - net(x, t, class_labels).to(torch.float64)) / t

    x = latents.to(torch.float64) * times[0]
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(times)):
        gamma = churn_gamma(t_cur, num_steps, S_churn, S_min, S_max)
        t_hat = net.round_sigma(t_cur + gamma * t_cur)
        noise = randn_like(x)  # drawn even where unused: later steps must get the same noise in any setting
        if gamma > 0:
            x = x + (t_hat**2 - t_cur**2).sqrt() * S_noise * noise
        slope = derivative(x, t_hat)
        x_next = x + (t_next - t_hat) * slope
        if i < num_steps - 1:
            x_next = x + (t_next - t_hat) * (0.5 * slope + 0.5 * derivative(x_next, t_next))
        x = x_next
        if callback is not None:
            callback(i, num_steps)
    return x


edm_sampler.UNITS = {"num_steps": "steps"}  # type: ignore[attr-defined]


class _CountingDenoiser:
    """Exact denoiser of standard normal data that counts its calls."""

    sigma_min = 0.0
    sigma_max = math.inf

    def __init__(self) -> None:
        self.calls = 0

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **_: Any) -> Tensor:
        self.calls += 1
        return x / (1 + sigma**2)


def check_sampler(name: str, sampler: Callable[..., Tensor], net: object) -> None:
    """UsageError where a (bound) sampler cannot run with its settings, or asks for what a denoiser has not."""
    told = getattr(sampler, "keywords", {})
    low, high = told.get("sigma_min"), told.get("sigma_max")
    if low is not None and high is not None and not 0 <= low < high:
        raise UsageError(f"{name}: sigma_min must be 0 or more and below sigma_max, not {low:g} and {high:g}")
    try:
        count_nfe(sampler)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot run with its settings: {error}") from error
    check = getattr(getattr(sampler, "func", sampler), "CHECK", None)
    if check is not None:
        check(net, **told)


def is_adaptive(sampler: Callable[..., Tensor]) -> bool:
    """Whether the denoiser calls of a (bound) sampler differ from image to image."""
    return bool(getattr(getattr(sampler, "func", sampler), "ADAPTIVE", False))


def count_nfe(sampler: Callable[..., Tensor]) -> int:
    """Denoiser calls for one image (NFE) of a sampler whose configuration is already bound, found by running it.

    Of an adaptive sampler those for one exactly denoised image, as a rough figure. Samplers that need more of a network
    than its calls (discrete ones) state the number by a rule of their own.
    """
    rule = getattr(getattr(sampler, "func", sampler), "NFE", None)
    if rule is not None:
        return int(rule(**getattr(sampler, "keywords", {})))
    net = _CountingDenoiser()
    guided = getattr(sampler, "keywords", {}).get("guidance", 1) != 1  # the guide's own calls are not counted
    more = {"guide": _CountingDenoiser()} if guided else {}
    sampler(net, torch.zeros(1, 1, 1, 1), **more)
    return net.calls

"""The generalised sampler behind the ablations of Karras et al. 2022 (Algorithm 1, Table 1, Figure 2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from repro.diffusion import schedules
from repro.diffusion.samplers import Callback, Denoiser, RandnLike, churn_gamma

SOLVERS = ("euler", "heun")
DISCRETIZATIONS = ("vp", "ve", "iddpm", "edm")
SCHEDULES = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """sigma(t), its derivative and inverse, and the scale s(t) with its derivative (Table 1)."""

    sigma: Curve
    sigma_deriv: Curve
    sigma_inv: Curve
    s: Curve
    s_deriv: Curve


def _sqrt_deriv(t: Tensor) -> Tensor:
    return 0.5 / t.sqrt()


def make_path(schedule: str, scaling: str, beta_d: float, beta_min: float) -> Path:
    """The path for a schedule (vp, ve, linear) and a scaling (vp, none); ValueError for other names."""
    sigma: Curve
    deriv: Curve
    inverse: Curve
    if schedule == "vp":
        sigma = partial(schedules.vp_sigma, beta_d=beta_d, beta_min=beta_min)
        deriv = partial(schedules.vp_sigma_derivative, beta_d=beta_d, beta_min=beta_min)
        inverse = partial(schedules.vp_sigma_inverse, beta_d=beta_d, beta_min=beta_min)
    elif schedule == "ve":
        sigma, deriv, inverse = torch.sqrt, _sqrt_deriv, torch.square
    elif schedule == "linear":
        sigma, deriv, inverse = torch.clone, torch.ones_like, torch.clone
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    if scaling == "none":
        return Path(sigma, deriv, inverse, torch.ones_like, torch.zeros_like)
    if scaling != "vp":
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")

    def s(t: Tensor) -> Tensor:
        return 1 / (1 + sigma(t).square()).sqrt()

    def s_deriv(t: Tensor) -> Tensor:
        return -sigma(t) * deriv(t) * s(t) ** 3

    return Path(sigma, deriv, inverse, s, s_deriv)


def default_range(discretization: str, epsilon_s: float = 1e-3) -> tuple[float, float]:
    """(sigma_min, sigma_max) of a discretization; ValueError for an unknown one."""
    if discretization == "vp":
        times = torch.tensor([epsilon_s, 1.0], dtype=torch.float64)
        low, high = schedules.vp_sigma(times).tolist()
        return low, high
    ranges = {"ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}
    if discretization not in ranges:
        raise ValueError(f"discretization must be one of {', '.join(DISCRETIZATIONS)}, not {discretization!r}")
    return ranges[discretization]


def supported_range(
    net: Denoiser, sigma_min: float | None, sigma_max: float | None, default: tuple[float, float]
) -> tuple[float, float]:
    """The asked range, the default's ends where None, within what net supports."""
    low = default[0] if sigma_min is None else sigma_min
    high = default[1] if sigma_max is None else sigma_max
    return max(low, net.sigma_min), min(high, net.sigma_max)


def noise_levels(
    discretization: str,
    num_steps: int,
    limits: tuple[float, float],
    rho: float,
    epsilon_s: float,
    C_1: float,
    C_2: float,
    M: int,
) -> Tensor:
    """Noise levels of the N steps within limits (sigma_min, sigma_max), falling. (N,) float64."""
    if discretization == "vp":
        return schedules.vp_sigma(schedules.vp_times(num_steps, epsilon_s), *schedules.vp_constants(*limits, epsilon_s))
    if discretization == "ve":
        return schedules.ve_sigmas(num_steps, *limits)
    if discretization == "iddpm":
        return schedules.iddpm_sigmas(num_steps, *limits, M, C_1, C_2)
    return schedules.edm_sigmas(num_steps, *limits, rho)


@torch.no_grad()
def ablation_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Tensor:
    """Algorithm 1 with any discretization, schedule, scaling and solver; contract as in `repro.diffusion.samplers`.

    num_steps: N >= 2; NFE is N for "euler", 2 N - 1 for "heun". sigma_min, sigma_max: None for the range that belongs
    to the discretization; always limited to what net supports. alpha: position of Heun's second evaluation in the step.
    The constants of the VP schedule follow from the range: sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    low, high = supported_range(net, sigma_min, sigma_max, default_range(discretization, epsilon_s))
    levels = noise_levels(discretization, num_steps, (low, high), rho, epsilon_s, C_1, C_2, M).to(latents.device)
    path = make_path(schedule, scaling, *schedules.vp_constants(low, high, epsilon_s))
    times = path.sigma_inv(net.round_sigma(levels))
    times = torch.cat([times, torch.zeros_like(times[:1])])

    def slope(x: Tensor, t: Tensor) -> Tensor:
        sigma, s, rate = path.sigma(t), path.s(t), path.sigma_deriv(t)
        denoised = net(x / s, sigma, class_labels).to(torch.float64)
        return (rate / sigma + path.s_deriv(t) / s) * x - rate * s / sigma * denoised

    x = latents.to(torch.float64) * (path.sigma(times[0]) * path.s(times[0]))
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(times)):
        sigma_cur = path.sigma(t_cur)
        gamma = churn_gamma(sigma_cur, num_steps, S_churn, S_min, S_max)
        t_hat = path.sigma_inv(net.round_sigma(sigma_cur * (1 + gamma)))
        extra = (path.sigma(t_hat).square() - sigma_cur.square()).clip(min=0).sqrt()
        x = path.s(t_hat) / path.s(t_cur) * x + extra * path.s(t_hat) * S_noise * randn_like(x)
        h = t_next - t_hat
        d = slope(x, t_hat)
        if solver == "euler" or i == num_steps - 1:
            x = x + h * d
        else:
            d_prime = slope(x + alpha * h * d, t_hat + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + d_prime / (2 * alpha))
        if callback is not None:
            callback(i, num_steps)
    return x


ablation_sampler.UNITS = {"num_steps": "steps"}  # type: ignore[attr-defined]

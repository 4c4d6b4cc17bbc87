"""Noise schedules and time steps as pure functions (Karras et al. 2022, Table 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _fractions(num_steps: int, device: torch.device | str, dtype: torch.dtype = torch.float64) -> Tensor:
    """i / (N - 1) for i = 0 ... N - 1. ValueError below two steps."""
    if num_steps < 2:
        raise ValueError(f"at least 2 steps are needed, not {num_steps}")
    return torch.arange(num_steps, dtype=dtype, device=device) / (num_steps - 1)


def edm_sigmas(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Noise levels sigma_max ... sigma_min, evenly spaced in sigma ** (1 / rho) (Equation 5). (N,), in `dtype`."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels: Tensor = (high + _fractions(num_steps, device, dtype) * (low - high)) ** rho
    return levels


def ve_sigmas(num_steps: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu") -> Tensor:
    """Noise levels sigma_max ... sigma_min in geometric progression (Table 1, VE). (N,) float64."""
    variances: Tensor = sigma_max**2 * (sigma_min**2 / sigma_max**2) ** _fractions(num_steps, device)
    return variances.sqrt()


def vp_times(num_steps: int, epsilon_s: float = 1e-3, device: torch.device | str = "cpu") -> Tensor:
    """Times 1 ... epsilon_s, evenly spaced (Table 1, VP). (N,) float64."""
    return 1 + _fractions(num_steps, device) * (epsilon_s - 1)


def vp_sigma(t: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """sigma(t) of the variance-preserving process, in the dtype of t (Table 1, VP).

    Plain exp(.) - 1 on purpose: in float32 it differs from expm1 at small t, and published networks saw its values.
    """
    return ((0.5 * beta_d * t.square() + beta_min * t).exp() - 1).sqrt()


def vp_sigma_inverse(sigma: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """Time at which the variance-preserving process has noise level sigma; plain log(1 + .) as in `vp_sigma`."""
    return ((beta_min**2 + 2 * beta_d * (1 + sigma.square()).log()).sqrt() - beta_min) / beta_d


def vp_sigma_derivative(t: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """d sigma / d t = (beta_min + beta_d t) (sigma + 1 / sigma) / 2."""
    sigma = vp_sigma(t, beta_d, beta_min)
    return 0.5 * (beta_min + beta_d * t) * (sigma + 1 / sigma)


def vp_constants(sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> tuple[float, float]:
    """(beta_d, beta_min) for which sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max."""
    low, high = math.log(sigma_min**2 + 1), math.log(sigma_max**2 + 1)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    return beta_d, high - beta_d / 2


def iddpm_alpha_bar(j: Tensor, num_levels: int = 1000, c_2: float = 0.008) -> Tensor:
    """Cosine schedule alpha_bar_j = sin^2(pi j / (2 M (C_2 + 1))) in float32 (Table 1, iDDPM)."""
    return (0.5 * math.pi * j.to(torch.float32) / num_levels / (c_2 + 1)).sin().square()


def iddpm_u(
    num_levels: int = 1000, c_1: float = 0.001, c_2: float = 0.008, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise levels u_0 > ... > u_M = 0 of iDDPM (Table 1): (M + 1,) in `dtype`, by the recurrence from j = M down.

    alpha_bar is evaluated in float32 whatever the dtype, as the published tables were; that costs up to 5e-4 of the
    smallest levels.
    """
    ratios = iddpm_alpha_bar(torch.arange(num_levels + 1), num_levels, c_2)
    floors = (ratios[:-1] / ratios[1:]).clip(min=c_1).to(dtype)
    u = torch.zeros(num_levels + 1, dtype=dtype)
    for j in range(num_levels, 0, -1):
        u[j - 1] = ((u[j].square() + 1) / floors[j - 1] - 1).sqrt()
    return u


def iddpm_sigmas(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    num_levels: int = 1000,
    c_1: float = 0.001,
    c_2: float = 0.008,
    device: torch.device | str = "cpu",
) -> Tensor:
    """N levels picked evenly (half to even) from the iDDPM table within [sigma_min, sigma_max]. (N,) float64."""
    u = iddpm_u(num_levels, c_1, c_2, dtype=torch.float64)
    inside = u[(u >= sigma_min) & (u <= sigma_max)]
    if not len(inside):
        raise ValueError(f"no iDDPM noise level lies within [{sigma_min}, {sigma_max}]")
    index = ((len(inside) - 1) * _fractions(num_steps, "cpu")).round().to(torch.int64)
    return inside[index].to(device)

"""Power-function averages and their reconstruction as mathematics (Karras et al. 2024, section 3 and appendix C).

An average at time t (images) with exponent gamma weighs earlier weights by tau^gamma / (t^(gamma + 1) / (gamma + 1))
on [0, t]. People name it by `std`, the standard deviation of that profile over t: 0 < std < 12^-1/2 = 0.2887. All of
this is in float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from repro.errors import UsageError

Array = npt.NDArray[np.float64]

MAX_STD = 12**-0.5
"""Relative width of the uniform profile (gamma 0), which all others are below."""


def gamma_from_std(std: float) -> float:
    """Exponent of the profile of relative width `std` (Equation 126): the largest root of a cubic.

    Raises:
        UsageError: `std` is not between 0 and 0.2887.
    """
    if not 0 < std < MAX_STD:
        raise UsageError(f"an EMA's std must be above 0 and below {MAX_STD:.4f}, not {std}")
    inverse = std**-2.0
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def std_from_gamma(gamma: float) -> float:
    """Relative width of the profile of exponent `gamma` (Equation 123)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_beta(gamma: float, t_next: float, t_delta: float) -> float:
    """Decay of the update that ends at `t_next` images and comes `t_delta` after the one before (Equation 127)."""
    return (1 - t_delta / t_next) ** (gamma + 1)


def inner_products(t_a: Array, gamma_a: Array, t_b: Array, gamma_b: Array) -> Array:
    """Integral over time of the product of two profiles (Equation 138), elementwise with broadcasting."""
    ratio = t_a / t_b
    rho = np.where(t_a < t_b, ratio**gamma_b, ratio**-gamma_a)
    product: Array = (gamma_a + 1) * (gamma_b + 1) * rho / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
    return product


def response(std: float, end: float, length: int) -> Array:
    """Weights of the steps 0 ... length - 1 in the average that ends at step `end`, of sum 1: for plots. (length,)."""
    t = np.arange(length, dtype=np.float64)
    weights = np.where(t <= end, (t / end) ** gamma_from_std(std), 0.0)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def solve_coefficients(times: Array, stds: Array, target_times: Array, target_stds: Array) -> Array:
    """Coefficients with which snapshots add up to other averages, nearest in the least-squares sense (Algorithm 3).

    As in the published code, and unlike the algorithm as printed, each target's coefficients are divided by their sum.

    Args:
        times, stds: (S,) end (images, positive) and width of each snapshot; no two alike.
        target_times, target_stds: (R,) of the averages wanted.

    Returns:
        (S, R), each column of sum 1.
    """
    gram, cross = _products(times, stds, target_times, target_stds)
    coefficients = np.asarray(np.linalg.solve(gram, cross), dtype=np.float64)
    return np.asarray(coefficients / coefficients.sum(axis=0))


def profile_errors(times: Array, stds: Array, target_times: Array, target_stds: Array) -> Array:
    """Relative distance in L2 of each target's profile from what the snapshots add up to, (R,): 0 exact, 1 useless."""
    coefficients = solve_coefficients(times, stds, target_times, target_stds)
    gram, cross = _products(times, stds, target_times, target_stds)
    targets = _gammas(target_stds)
    own = inner_products(target_times, targets, target_times, targets)
    squares = own - 2 * (coefficients * cross).sum(axis=0) + (coefficients * (gram @ coefficients)).sum(axis=0)
    return np.asarray(np.sqrt(np.maximum(squares, 0) / own), dtype=np.float64)


def reliable_range(times: Array, stds: Array, end: float, limit: float) -> tuple[float, float] | None:
    """Least and greatest width, to three decimals, up to which every average at `end` has an error of at most `limit`.

    The range holds the widest run of such widths; None where there is none.
    """
    grid = np.arange(1, math.floor(MAX_STD * 1000) + 1) / 1000
    good = profile_errors(times, stds, np.full(len(grid), float(end)), grid) <= limit
    runs: list[list[float]] = [[]]
    for std, fine in zip(grid.tolist(), good.tolist(), strict=True):
        if fine:
            runs[-1].append(std)
        elif runs[-1]:
            runs.append([])
    widest = max(runs, key=len)
    return (widest[0], widest[-1]) if widest else None


def _products(times: Array, stds: Array, target_times: Array, target_stds: Array) -> tuple[Array, Array]:
    """Inner products of the snapshots with each other (S, S) and with the targets (S, R)."""
    gammas, targets = _gammas(stds), _gammas(target_stds)
    gram = inner_products(times[:, None], gammas[:, None], times, gammas)
    return gram, inner_products(times[:, None], gammas[:, None], target_times, targets)


def _gammas(stds: Array) -> Array:
    return np.array([gamma_from_std(float(std)) for std in stds], dtype=np.float64)

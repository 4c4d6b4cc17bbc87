"""Kernel distance (KID): the unbiased squared maximum mean discrepancy of two feature sets (Binkowski et al. 2018).

Needs features of order 1: the cubic kernel of large features is ruled by the largest of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from repro.metrics.frechet import Array

JACKKNIFE_BLOCKS = 20
OVERLAP = 0.5
"""Subsets that hold more than this share of a set between them are not independent: std / sqrt(subsets) is no error."""

Kernel = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """Mean and population standard deviation over subsets, and the standard error of the mean."""

    mean: float
    std: float
    error: float


def polynomial(degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> Kernel:
    """(gamma x.y + coef0)^degree; gamma None is 1/d."""

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray(((1 / x.shape[1] if gamma is None else gamma) * (x @ y.T) + coef0) ** degree)

    return kernel


def gaussian(sigma: float = 10.0) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(x: Array, y: Array) -> Array:
        squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * (x @ y.T)
        return np.asarray(np.exp(-np.maximum(squares, 0) / (2 * sigma**2)))

    return kernel


def unbiased_mmd(x: Array, y: Array, kernel: Kernel) -> float:
    """Unbiased squared MMD of two sets (m, d): off-diagonal means within, minus twice the mean over all cross pairs."""
    within = []
    for values in (x, y):
        matrix, m = kernel(values, values), len(values)
        within.append((matrix.sum() - np.trace(matrix)) / (m * (m - 1)))
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def kernel_distance(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    kernel: Kernel | None = None,
    seed: int = 2020,
) -> KernelDistance:
    """KID over random subsets, drawn as torch-fidelity draws them, with kernels in float64.

    Args:
        generated, reference: features (n, d), any float type.
        subsets, subset_size: number and size of the subsets of each set, drawn without replacement.
        kernel: None is the cubic one of the paper.
        seed: of NumPy's legacy generator; one for all subsets, `generated` drawn first.

    Raises:
        ValueError: features of different d, not finite, or a set smaller than a subset.
    """
    x, y = checked_pair(generated, reference)
    if not 2 <= subset_size <= min(len(x), len(y)) or subsets < 1:
        raise ValueError(f"{subsets} subsets of {subset_size} cannot be drawn from {len(x)} and {len(y)} features")
    kernel = kernel or polynomial()
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        first = x[rng.choice(len(x), subset_size, replace=False)]
        second = y[rng.choice(len(y), subset_size, replace=False)]
        values.append(unbiased_mmd(first, second, kernel))
    std = float(np.std(values))
    disjoint = subsets > 1 and subsets * subset_size <= OVERLAP * min(len(x), len(y))
    error = std / math.sqrt(subsets) if disjoint else jackknife_error(x, y, kernel)
    return KernelDistance(float(np.mean(values)), std, error)


def jackknife_error(x: Array, y: Array, kernel: Kernel, blocks: int = JACKKNIFE_BLOCKS) -> float:
    """Standard error of the MMD of two whole sets: delete-one-block jackknife of each, variances added.

    For equal distributions, where the MMD is degenerate, it errs on the safe side, by less than a factor of two. nan
    where a set has fewer than two samples a block.
    """
    blocks = min(blocks, len(x) // 2, len(y) // 2)
    if blocks < 2:
        return math.nan
    parts = [np.array_split(values, blocks) for values in (x, y)]
    within = [_block_sums(part, part, kernel, diagonal=False) for part in parts]
    cross = _block_sums(parts[0], parts[1], kernel, diagonal=True)
    sizes = [np.array([len(p) for p in part], dtype=np.float64) for part in parts]
    variance = 0.0
    for own in (0, 1):
        mixed = cross if own == 0 else cross.T
        values = []
        for k in range(blocks):
            n, m = sizes[own].sum() - sizes[own][k], sizes[1 - own].sum()
            inner = within[own].sum() - within[own][k].sum() - within[own][:, k].sum() + within[own][k, k]
            values.append(inner / (n * (n - 1)) - 2 * (mixed.sum() - mixed[k].sum()) / (n * m))
        variance += (blocks - 1) * float(np.var(values))
    return math.sqrt(variance)


def _block_sums(first: list[Array], second: list[Array], kernel: Kernel, diagonal: bool) -> Array:
    """(blocks, blocks) sums of the kernel over pairs of blocks; `diagonal`: with the pairs of a point and itself."""
    sums = np.array([[kernel(x, y).sum() for y in second] for x in first])
    if not diagonal:
        sums[np.diag_indices(len(first))] -= [np.trace(kernel(x, x)) for x in first]
    return sums


def checked_pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    """Two feature sets (n, d) as float64. ValueError unless they are finite and of one d."""
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, d) of one d, not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features are not finite")
    return x, y

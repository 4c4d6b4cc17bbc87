"""Inception score (Salimans et al. 2016): exp of the mean divergence of class probabilities from their mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from repro.metrics.frechet import Array


def inception_score(
    logits: npt.ArrayLike, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> tuple[float, float]:
    """Mean and population standard deviation over splits, as torch-fidelity has them.

    Args:
        logits: (n, classes), without the bias of the last layer.
        splits: split i holds rows floor(i n / splits) to floor((i + 1) n / splits) - 1.
        shuffle: permute the rows first, by NumPy's legacy generator.
        seed: of the permutation.

    Raises:
        ValueError: not a finite matrix, or fewer rows than splits.
    """
    values = _checked(logits)
    if not 1 <= splits <= len(values):
        raise ValueError(f"{len(values)} images cannot be split in {splits}")
    if shuffle:
        values = values[np.random.RandomState(seed).permutation(len(values))]
    bounds = [i * len(values) // splits for i in range(splits + 1)]
    scores = [_score(values[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    return float(np.mean(scores)), float(np.std(scores))


def inception_score_adm(logits: npt.ArrayLike, split_size: int = 5000) -> float:
    """Inception score of the ADM suite (Dhariwal and Nichol 2021): consecutive splits, unshuffled, plain mean.

    Args:
        logits: (n, classes) in file order, without bias.
        split_size: images a split; a shorter last one counts as much as the others.
    """
    values = _checked(logits)
    return float(np.mean([_score(part) for part in _consecutive(values, split_size)]))


def _consecutive(values: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _score(logits: Array) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    # a class that no image shows has p = 0 in every row and adds nothing
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))


def _checked(logits: npt.ArrayLike) -> Array:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"logits must be (n, classes), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits are not finite")
    return values

"""Optimisers as configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import Parameter

from repro.errors import UsageError


def _decays(name: str, betas: Sequence[float]) -> Sequence[float]:
    """The same two. UsageError where one is not in [0, 1)."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"{name}.betas must be two numbers from 0 to below 1, not {list(betas)}")
    return betas


class Adam:
    """Adam without weight decay (EDM; the published loop's settings are the defaults).

    `create` returns PyTorch's fused implementation: the same update in one kernel.
    """

    def __init__(self, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas = _decays("Adam", betas)
        self.eps = eps

    def create(self, weights: Parameter) -> torch.optim.Optimizer:
        """The optimiser of one vector; the loop sets the learning rate before every step."""
        return torch.optim.Adam([weights], lr=0.0, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); DiT and U-DiT decay by 0."""

    def __init__(self, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        self.betas = _decays("AdamW", betas)
        self.eps = eps
        self.weight_decay = weight_decay

    def create(self, weights: Parameter) -> torch.optim.Optimizer:
        """The optimiser of one vector; the loop sets the learning rate before every step."""
        betas = (self.betas[0], self.betas[1])
        return torch.optim.AdamW(
            [weights], lr=0.0, betas=betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )

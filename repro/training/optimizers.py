"""Optimisers as configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import Parameter


class Adam:
    """Adam without weight decay (EDM; the published loop's settings are the defaults).

    `create` returns PyTorch's fused implementation: the same update in one kernel.
    """

    def __init__(self, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas = betas
        self.eps = eps

    def create(self, weights: Parameter) -> torch.optim.Optimizer:
        """The optimiser of one vector; the loop sets the learning rate before every step."""
        return torch.optim.Adam([weights], lr=0.0, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True)

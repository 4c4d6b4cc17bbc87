"""A network's weights as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatWeights:
    """The trainable parameters of a network as one vector, of which they become views.

    Optimiser, gradient norm and EMA then cost a few calls a step in place of a few for each of hundreds of tensors, and
    every update that works element by element gives the same numbers. The network must be on its device before.

    Attributes:
        vector: all weights, a leaf that an optimiser can be given; its `grad` is set by `gather_gradient`.
    """

    def __init__(self, net: nn.Module) -> None:
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self._sizes = [p.numel() for p in self.parameters]
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        for parameter, view in zip(self.parameters, self.split(self.vector.detach()), strict=True):
            parameter.data = view

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector of this length, shaped and ordered like the parameters."""
        parts = torch.split(vector, self._sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def clear_gradient(self) -> None:
        """Forget every gradient."""
        self.vector.grad = None
        for parameter in self.parameters:
            parameter.grad = None

    def gather_gradient(self) -> Tensor:
        """The gradient of all parameters as one vector, also as `vector.grad`; zero where a parameter has none."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.vector.grad = torch.cat([gradient.reshape(-1) for gradient in gradients])
        return self.vector.grad

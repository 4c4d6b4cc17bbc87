"""A network that predicts noise, with the process that it is trained for: what loss and samplers are given."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from repro.diffusion.discrete import NoiseSchedule, Prediction, Process, Variance
from repro.errors import UsageError
from repro.models.udit import fused, is_fusible


class DiscreteDenoiser(nn.Module):
    """A DiT or U-DiT as the rest of the house sees a network: one-hot labels, a row of zeros for no class.

    Args:
        model: network with attributes img_resolution, in_channels, label_dim, learn_sigma, class_dropout and
            label_draws, called as ``model(x, t, y, drop)``.
        noise_schedule: `linear` or `squaredcos_cap_v2`.
        diffusion_steps: steps of the process.
        prediction: what the first channels of the output are, `epsilon` or `x0`.
        fixed_variance: `fixed_large` or `fixed_small`, for a network that learns none.
    """

    def __init__(
        self,
        model: nn.Module,
        noise_schedule: NoiseSchedule = "linear",
        diffusion_steps: int = 1000,
        prediction: Prediction = "epsilon",
        fixed_variance: Variance = "fixed_large",
    ) -> None:
        super().__init__()
        self.model = model
        self.process = Process(noise_schedule, diffusion_steps)
        self.prediction = prediction
        self.variance: Variance = "learned_range" if model.learn_sigma else fixed_variance
        self.img_resolution: int = model.img_resolution  # type: ignore[assignment]
        self.img_channels: int = model.in_channels  # type: ignore[assignment]
        self.label_dim: int = model.label_dim  # type: ignore[assignment]
        self.class_dropout: float = model.class_dropout  # type: ignore[assignment]
        self.label_draws: int = model.label_draws  # type: ignore[assignment]

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, *, drop: Tensor | None = None
    ) -> Tensor:
        """The network's output, (N, C or 2 C, H, W) float32.

        x: (N, C, H, W) noisy images; t: (N,) or (1,) steps of the whole process; class_labels: (N or 1, label_dim)
        one-hot, None or zeros for no class; drop: (N, label_draws), nonzero where a label is dropped.
        """
        t = t.reshape(-1).expand(x.shape[0])
        output: Tensor = self.model(x, t, self._classes(class_labels, x), drop)
        return output.to(torch.float32)

    def _classes(self, class_labels: Tensor | None, x: Tensor) -> Tensor | None:
        """(N,) int64, the null class where a row of the one-hot labels is zero; None for an unconditional network."""
        if not self.label_dim:
            return None
        if class_labels is None:
            class_labels = torch.zeros(1, self.label_dim, device=x.device)
        if class_labels.ndim != 2 or class_labels.shape[1] != self.label_dim:
            raise UsageError(f"labels of shape {tuple(class_labels.shape)} are not one-hot of {self.label_dim} classes")
        classes = torch.where(class_labels.any(1), class_labels.argmax(1), self.label_dim)
        return classes.expand(x.shape[0])

    @property
    def has_null_class(self) -> bool:
        """Whether the network knows "no class": it was trained with label dropout."""
        return self.label_dim > 0 and self.class_dropout > 0

    def inference(self) -> DiscreteDenoiser:
        """The form to sample from: this one, or a copy with fused feed-forwards where the network has some."""
        if not is_fusible(self.model):
            return self
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.model = fused(self.model)
        return other.eval()

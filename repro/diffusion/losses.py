"""Training losses: noise-level distribution and weighting (Karras et al. 2022, Table 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from repro.diffusion import schedules
from repro.diffusion.draws import Draws
from repro.errors import positive

Augment = Callable[[Tensor, Draws], tuple[Tensor, Tensor]]


class DenoisingLoss:
    """Base class: weighted squared error of the denoiser; subclasses draw sigma and give its weight."""

    def sample_sigma(self, num_images: int, draws: Draws) -> Tensor:
        """One noise level for each image: (N, 1, 1, 1) float32 on the CPU. Draw purpose "sigma"."""
        raise NotImplementedError

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma), elementwise."""
        raise NotImplementedError

    def __call__(
        self,
        net: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor | None = None,
        *,
        augment: Augment | None = None,
        draws: Draws,
    ) -> Tensor:
        """lambda(sigma) (D(y + n; sigma) - y)^2 for each pixel: (N, C, H, W).

        images: (N, C, H, W) float32 in [-1, 1]; labels: (N, label_dim) one-hot or None; augment: maps images to
        (y, augmentation labels). The draws are, in this order, "sigma", "augment" and "noise".
        """
        sigma = self.sample_sigma(images.shape[0], draws).to(images.device)
        model_kwargs: dict[str, Any] = {}
        if augment is not None:
            images, model_kwargs["augment_labels"] = augment(images, draws)
        noise = draws.randn(images.shape, "noise").to(images.device) * sigma
        denoised = net(images + noise, sigma, labels, **model_kwargs)
        return self.weight(sigma) * (denoised - images).square()


class VPLoss(DenoisingLoss):
    """Variance-preserving: time uniform on [epsilon_t, 1], weight 1 / sigma^2 (Table 1, VP)."""

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5) -> None:
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.epsilon_t = epsilon_t

    def sample_sigma(self, num_images: int, draws: Draws) -> Tensor:
        t = 1 + draws.rand([num_images, 1, 1, 1], "sigma") * (self.epsilon_t - 1)
        return schedules.vp_sigma(t, self.beta_d, self.beta_min)

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.square()


class VELoss(DenoisingLoss):
    """Variance-exploding: ln sigma uniform, weight 1 / sigma^2 (Table 1, VE)."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def sample_sigma(self, num_images: int, draws: Draws) -> Tensor:
        u = draws.rand([num_images, 1, 1, 1], "sigma")
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.square()


class EDMLoss(DenoisingLoss):
    """Ours: ln sigma ~ N(P_mean, P_std^2), weight 1 / c_out^2 (Table 1, Equation 8)."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5) -> None:
        self.P_mean = P_mean
        self.P_std = positive(f"{type(self).__name__}.P_std", P_std)
        self.sigma_data = sigma_data

    def sample_sigma(self, num_images: int, draws: Draws) -> Tensor:
        return (draws.randn([num_images, 1, 1, 1], "sigma") * self.P_std + self.P_mean).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


class iDDPMLoss(DenoisingLoss):
    """iDDPM: one of its M noise levels, each as likely, weight 1 / sigma^2 (Table 1, iDDPM).

    Its second term, which trains the predicted variances, is not here: no sampler of this project uses them.
    """

    def __init__(self, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> None:
        self.u = schedules.iddpm_u(M, C_1, C_2)[:M]

    def sample_sigma(self, num_images: int, draws: Draws) -> Tensor:
        return self.u[draws.randint(len(self.u), [num_images, 1, 1, 1], "sigma")]

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.square()


def drop_labels(labels: Tensor, probability: float, draws: Draws) -> Tensor:
    """Replace the label row of an image by zeros with the given probability (draw purpose "label_dropout").

    labels: (N, label_dim). Kept where u >= probability, u ~ U(0, 1). Probability 0 draws nothing.
    """
    if probability == 0 or labels.shape[1] == 0:
        return labels
    keep = draws.rand([labels.shape[0], 1], "label_dropout") >= probability
    return labels * keep.to(labels.device, labels.dtype)

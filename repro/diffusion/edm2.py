"""Preconditioning and loss of Karras et al. 2024 (EDM2): the denoiser with a learned uncertainty u(sigma)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repro.diffusion.draws import Draws
from repro.diffusion.losses import Augment, EDMLoss
from repro.diffusion.precond import Precond
from repro.models.edm2 import EDM2UNet
from repro.models.edm2_layers import MPConv, MPFourier
from repro.models.layers import Init, Linear


class EDM2Precond(Precond):
    """EDM's preconditioning with a head that learns u(sigma), the log of the expected loss (Equation 21).

    The head is a linear layer on Fourier features of c_noise, with the conventions of the network: with bias for ADM
    (configuration B), weights as the network's from C on, features of unit magnitude in G. In the state dict the
    network stands as `unet`, as published.

    Args:
        model: network, see `Precond`.
        sigma_data: standard deviation of the data.
        logvar_channels: Fourier features of the head.
        use_fp16, use_bf16: see `Precond`.
    """

    MODEL = "unet"

    def __init__(
        self,
        model: nn.Module,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        use_fp16: bool = True,
        use_bf16: bool = False,
    ) -> None:
        super().__init__(model, use_fp16, use_bf16)
        self.sigma_data = sigma_data
        self.sigma_min = 0.0
        self.sigma_max = math.inf
        if isinstance(model, EDM2UNet):
            self.logvar_fourier = MPFourier(logvar_channels, magnitude_preserving=model.mp_fourier)
            self.logvar_linear: nn.Module = MPConv(logvar_channels, 1, weights=model.weights)
        else:
            third = math.sqrt(1 / 3)  # uniform in +-1/sqrt(fan in), weight and bias
            self.logvar_fourier = MPFourier(logvar_channels, magnitude_preserving=False)
            self.logvar_linear = Linear(logvar_channels, 1, init=Init("kaiming_uniform", weight=third, bias=third))

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        return self.unet  # type: ignore[return-value]

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        total = sigma.square() + self.sigma_data**2
        c_out = sigma * self.sigma_data / total.sqrt()
        return self.sigma_data**2 / total, c_out, 1 / total.sqrt(), sigma.log() / 4

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        return_logvar: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """The denoised image as `Precond.forward`; with `return_logvar` also u(sigma), (N or 1, 1, 1, 1) float32."""
        denoised = super().forward(x, sigma, class_labels, force_fp32, **model_kwargs)
        return (denoised, self.uncertainty(sigma, x.device)) if return_logvar else denoised

    def uncertainty(self, sigma: Tensor | float, device: torch.device | str = "cpu") -> Tensor:
        """u(sigma), (N or 1, 1, 1, 1) float32. sigma: (N,) or one value."""
        c_noise = torch.as_tensor(sigma, device=device).to(torch.float32).flatten().log() / 4
        u: Tensor = self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
        return u


class UncertaintyLoss(EDMLoss):
    """lambda(sigma) / exp(u) (D - y)^2 + u for each pixel, u = u(sigma) learned (Karras et al. 2024, Equation 21).

    The defaults are those for ImageNet-512 latents. u has a gradient from both terms.
    """

    def __init__(self, P_mean: float = -0.4, P_std: float = 1.0, sigma_data: float = 0.5) -> None:
        super().__init__(P_mean, P_std, sigma_data)

    def __call__(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None = None,
        *,
        augment: Augment | None = None,
        draws: Draws,
    ) -> Tensor:
        """As `DenoisingLoss`, (N, C, H, W); net is an `EDM2Precond`."""
        sigma = self.sample_sigma(images.shape[0], draws).to(images.device)
        model_kwargs: dict[str, Any] = {}
        if augment is not None:
            images, model_kwargs["augment_labels"] = augment(images, draws)
        noise = draws.randn(images.shape, "noise").to(images.device) * sigma
        denoised, u = net(images + noise, sigma, labels, return_logvar=True, **model_kwargs)
        return self.weight(sigma) / u.exp() * (denoised - images).square() + u

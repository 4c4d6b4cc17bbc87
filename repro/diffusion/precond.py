"""Preconditioning: the denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, Table 1)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repro.diffusion import schedules
from repro.errors import UsageError


class Precond(nn.Module):
    """Base class: everything but the four coefficients.

    model: a network with attributes img_resolution, in_channels and label_dim, called as
    ``model(c_in x, c_noise, class_labels, **model_kwargs)``.
    use_fp16: run the network in float16 on CUDA; without effect on a CPU (as published).
    use_bf16: run the network in bfloat16, on any device (not in the paper). Both keep embeddings, affine layers and the
        softmax in float32, and the weights themselves.
    sigma_min, sigma_max: noise levels that the denoiser supports, used by the samplers.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"use_bf16": False}
    model: nn.Module
    MODEL: ClassVar[str] = "model"
    """Name of the network in the state dict."""

    sigma_min: float
    sigma_max: float

    def __init__(self, model: nn.Module, use_fp16: bool = False, use_bf16: bool = False) -> None:
        super().__init__()
        if use_fp16 and use_bf16:
            raise UsageError(f"{type(self).__name__}: use_fp16 and use_bf16 exclude each other")
        setattr(self, self.MODEL, model)
        self.use_fp16 = use_fp16
        self.use_bf16 = use_bf16
        self.img_resolution: int = model.img_resolution  # type: ignore[assignment]
        self.img_channels: int = model.in_channels  # type: ignore[assignment]
        self.label_dim: int = model.label_dim  # type: ignore[assignment]

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        """(c_skip, c_out, c_in, c_noise) for sigma (N or 1, 1, 1, 1) float32."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Denoise: (N, C, H, W) float32.

        x: (N, C, H, W) image plus noise; sigma: (N,) or one value, standard deviation of that noise in pixel units;
        class_labels: (N, label_dim) one-hot, or None for no class.
        """
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        dtype = self._working_dtype(x.device, force_fp32)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        raw = self.model((c_in * x).to(dtype), c_noise.flatten(), self._labels(class_labels, x), **model_kwargs)
        if raw.dtype != dtype:
            raise TypeError(f"the network returned {raw.dtype} instead of {dtype}")
        denoised: Tensor = c_skip * x + c_out * raw[:, : self.img_channels].to(torch.float32)
        return denoised

    def _working_dtype(self, device: torch.device, force_fp32: bool) -> torch.dtype:
        if force_fp32:
            return torch.float32
        if self.use_bf16:
            return torch.bfloat16
        return torch.float16 if self.use_fp16 and device.type == "cuda" else torch.float32

    def _labels(self, class_labels: Tensor | None, x: Tensor) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return torch.zeros(1, self.label_dim, device=x.device)
        return class_labels.to(torch.float32).reshape(-1, self.label_dim)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the denoiser supports: any level, here."""
        return torch.as_tensor(sigma)


class VPPrecond(Precond):
    """Variance-preserving preconditioning (Table 1, VP). M: number of noise levels of the original network."""

    def __init__(
        self,
        model: nn.Module,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        use_fp16: bool = False,
        use_bf16: bool = False,
    ) -> None:
        super().__init__(model, use_fp16, use_bf16)
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.M = M
        self.sigma_min = float(self.sigma(epsilon_t))
        self.sigma_max = float(self.sigma(1.0))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at time t; float32 for a number, else the dtype of t."""
        return schedules.vp_sigma(_float_tensor(t), self.beta_d, self.beta_min)

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time at which the noise level is sigma."""
        return schedules.vp_sigma_inverse(_float_tensor(sigma), self.beta_d, self.beta_min)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        return 1.0, -sigma, 1 / (sigma.square() + 1).sqrt(), (self.M - 1) * self.sigma_inv(sigma)


class VEPrecond(Precond):
    """Variance-exploding preconditioning (Table 1, VE)."""

    def __init__(
        self,
        model: nn.Module,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        use_fp16: bool = False,
        use_bf16: bool = False,
    ) -> None:
        super().__init__(model, use_fp16, use_bf16)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class iDDPMPrecond(Precond):
    """Preconditioning of improved DDPM (Table 1, iDDPM): discrete noise levels u_0 > ... > u_M = 0.

    The network has twice as many output channels as the image; the second half (predicted variances) is not used.
    """

    def __init__(
        self,
        model: nn.Module,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        use_fp16: bool = False,
        use_bf16: bool = False,
    ) -> None:
        super().__init__(model, use_fp16, use_bf16)
        self.M = M
        self.u: Tensor
        with torch.device("cpu"):
            u = schedules.iddpm_u(M, C_1, C_2)
        self.register_buffer("u", u)
        self._set_limits()
        # An imported table may differ from ours in the last digits: the limits follow it.
        self.register_load_state_dict_post_hook(_follow_table)  # type: ignore[no-untyped-call]

    def _set_limits(self) -> None:
        self.sigma_min = float(self.u[self.M - 1])
        self.sigma_max = float(self.u[0])

    def nearest_level(self, sigma: Tensor | float) -> Tensor:
        """Index (int64, shape of sigma) of the entry of u that is nearest to sigma, the first one on ties."""
        sigma = torch.as_tensor(sigma, device=self.u.device)
        distances = (sigma.to(torch.float32).reshape(-1, 1) - self.u).abs()
        return distances.argmin(dim=1).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The entry of u nearest to sigma, in the dtype and shape of sigma."""
        sigma = torch.as_tensor(sigma)
        return self.u[self.nearest_level(sigma)].to(sigma.dtype).to(sigma.device)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        c_noise = (self.M - 1 - self.nearest_level(sigma)).to(torch.float32)
        return 1.0, -sigma, 1 / (sigma.square() + 1).sqrt(), c_noise


class EDMPrecond(Precond):
    """Preconditioning of Karras et al. 2022 (Table 1, "Ours"). sigma_data: standard deviation of the data."""

    def __init__(
        self, model: nn.Module, sigma_data: float = 0.5, use_fp16: bool = False, use_bf16: bool = False
    ) -> None:
        super().__init__(model, use_fp16, use_bf16)
        self.sigma_data = sigma_data
        self.sigma_min = 0.0
        self.sigma_max = math.inf

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        total = sigma.square() + self.sigma_data**2
        c_out = sigma * self.sigma_data / total.sqrt()
        return self.sigma_data**2 / total, c_out, 1 / total.sqrt(), sigma.log() / 4


def _follow_table(module: nn.Module, _: Any) -> None:
    assert isinstance(module, iDDPMPrecond)
    module._set_limits()


def _float_tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32, device="cpu")

"""The variance-preserving diffusion that U-ViT and ScaleLong train: its schedules, and the network that belongs to one.

x_t = alpha(t) x_0 + sigma(t) eps with alpha^2 + sigma^2 = 1. Schedules are float64 functions of time t in [0, 1].
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.skips import ATTRIBUTE
from repro.models.uvit import UViT

ScheduleName = Literal["linear", "stable-diffusion"]
Target = Literal["noise", "x0"]


class Schedule:
    """Base class: what samplers and loss ask of a schedule.

    time_factor: the network is told time_factor * t.
    """

    time_factor: float

    def log_alpha(self, t: Tensor) -> Tensor:
        """Log of the factor of x_0."""
        raise NotImplementedError

    def inverse_lambda(self, value: Tensor) -> Tensor:
        """The time of half the log signal-to-noise ratio."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of x_0."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda = log alpha - log sigma, which falls with t."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).log()


class LinearSDE(Schedule):
    """Continuous time with beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021; ScaleLong's pixels).

    dx = -beta(t) / 2 x dt + sqrt(beta(t)) dw. The network is told 999 t.
    """

    time_factor = 999.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = beta_min
        self.beta_max = beta_max

    def beta(self, t: Tensor) -> Tensor:
        """Rate of the noise, the square of the diffusion coefficient."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, s: Tensor | float, t: Tensor) -> Tensor:
        """Of beta from s to t: alpha^2 of the step is exp(-integral)."""
        return self.beta_min * (t - s) + (self.beta_max - self.beta_min) * (t * t - s * s) / 2

    def nsr(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma^2 / alpha^2."""
        return torch.expm1(self.integral(0.0, t))

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.integral(0.0, t)

    def inverse_lambda(self, value: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        q = 2 * slope * torch.logaddexp(-2 * value, torch.zeros_like(value))
        return q / (((self.beta_min**2 + q).sqrt() + self.beta_min) * slope)


class DiscreteBetas(Schedule):
    """1000 steps of Stable Diffusion's betas, with log alpha piecewise linear in between (ScaleLong's text model).

    Step n is time n / 1000, and the network is told 1000 t.

    Args:
        betas: of each step, float64; None for linspace(sqrt(0.00085), sqrt(0.012), 1000)^2.
    """

    def __init__(self, betas: Tensor | None = None) -> None:
        with torch.device("cpu"):
            if betas is None:
                betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
            self.betas = betas.to(torch.float64)
            self.steps = len(betas)
            self.time_factor = float(self.steps)
            self.log_alphas = 0.5 * torch.log1p(-self.betas).cumsum(0)
            self.knots = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps

    def log_alpha(self, t: Tensor) -> Tensor:
        return _interpolate(t, self.knots, self.log_alphas)

    def inverse_lambda(self, value: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(value), -2 * value)
        return _interpolate(log_alpha, self.log_alphas.flip(0), self.knots.flip(0))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through the points, xs increasing; beyond them its first and last pieces go on."""
    xs, ys = xs.to(x), ys.to(x)
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


@lru_cache(maxsize=2)
def make_schedule(name: ScheduleName) -> Schedule:
    """The schedule of a name. UsageError for an unknown one."""
    if name == "linear":
        return LinearSDE()
    if name == "stable-diffusion":
        return DiscreteBetas()
    raise UsageError(f"unknown schedule {name!r}; known: linear, stable-diffusion")


def expand(value: Tensor, x: Tensor) -> Tensor:
    """(N,) or (1,) as a factor of images (N, C, H, W), in their dtype."""
    return value.reshape(-1, *[1] * (x.ndim - 1)).to(x)


class VPDenoiser(nn.Module):
    """A network with its schedule, as losses and samplers know it: predicts the noise in x at time t.

    Args:
        model: called as ``model(x, time, condition)``, with attributes img_resolution, in_channels and label_dim.
        schedule: `linear` (continuous) or `stable-diffusion` (discrete).
        target: what the network's output is, `noise` or `x0`.
        class_dropout: probability with which training replaces class or text by none.
        use_fp16, use_bf16: autocast of the network; float16 on CUDA only.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: ScheduleName = "linear",
        target: Target = "noise",
        class_dropout: float = 0.0,
        use_fp16: bool = False,
        use_bf16: bool = False,
    ) -> None:
        super().__init__()
        if target not in ("noise", "x0"):
            raise UsageError(f"unknown target {target!r}; known: noise, x0")
        if use_fp16 and use_bf16:
            raise UsageError("VPDenoiser: use_fp16 and use_bf16 exclude each other")
        if not 0 <= class_dropout <= 1:
            raise UsageError(f"VPDenoiser.class_dropout is a probability, not {class_dropout}")
        scaling = getattr(model, ATTRIBUTE, None)
        if scaling is not None and not getattr(model, "long_skips", True):
            # Published networks of this form exist, with weights that are never used; to train one is a mistake.
            raise UsageError(f"{type(model).__name__} has no long skips here, to which {scaling.label} could apply")
        self.model = model
        self.process = make_schedule(schedule)
        self.target: Target = target
        self.class_dropout = class_dropout
        self.use_fp16 = use_fp16
        self.use_bf16 = use_bf16
        self.img_resolution: int = model.img_resolution  # type: ignore[assignment]
        self.img_channels: int = model.in_channels  # type: ignore[assignment]
        self.label_dim: int = model.label_dim  # type: ignore[assignment]
        context = (getattr(model, "context_tokens", 0), getattr(model, "context_dim", 0))
        self.context_shape: tuple[int, int] | None = context if context[0] else None
        self.empty_context: Tensor | None = None
        if class_dropout and self.label_dim and not getattr(model, "null_class", False):
            raise UsageError("labels cannot be dropped: the network has no null class")

    def raw(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's own output, (N, C, H, W) float32. Arguments as `forward`."""
        tau = (t.reshape(-1).to(torch.float64) * self.process.time_factor).to(torch.float32).expand(x.shape[0])
        images = x.to(torch.float32)
        told = self.condition_of(condition, images)
        with self._precision(x.device):
            output: Tensor = self.model(images, tau, told)
        return output.to(torch.float32)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The predicted noise, (N, C, H, W) in the dtype of x.

        x: (N, C, H, W) noisy images; t: (N,) or (1,) times in [0, 1]; condition: (N or 1, label_dim) one-hot classes,
        or (N, tokens, width) of texts; a row of zeros, or None, for no class or the empty text.
        """
        output = self.raw(x, t, condition).to(x.dtype)
        if self.target == "noise":
            return output
        time = t.reshape(-1).to(torch.float64)
        return (x - expand(self.process.alpha(time), x) * output) / expand(self.process.sigma(time), x)

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        if self.use_bf16 and device.type != "meta":  # nothing is computed there, and autocast refuses it
            return torch.autocast(device.type, torch.bfloat16)
        if self.use_fp16 and device.type == "cuda":
            return torch.autocast(device.type, torch.float16)
        return contextlib.nullcontext()

    def condition_of(self, condition: Tensor | None, x: Tensor) -> Tensor | None:
        """What the model takes: labels or texts for a U-ViT, one-hot classes for the others."""
        if self.context_shape is not None:
            return self.contexts(condition, x)
        if not self.label_dim:
            return None
        if condition is None:
            condition = torch.zeros(1, self.label_dim, device=x.device)
        condition = condition.expand(x.shape[0], -1)
        if not isinstance(self.model, UViT):
            return condition
        if not self.model.null_class and not x.is_meta and not bool(condition.any(1).all()):
            raise UsageError("this network was trained without a null class and needs a class for every image")
        return torch.where(condition.any(1), condition.argmax(1), self.label_dim)

    def contexts(self, condition: Tensor | None, x: Tensor) -> Tensor:
        """(N, tokens, width): the texts, with the empty one in place of a text of zeros."""
        assert self.context_shape is not None
        shape: Sequence[int] = (x.shape[0], *self.context_shape)
        empty = torch.zeros(shape[1:]) if self.empty_context is None else self.empty_context
        empty = empty.to(x)
        if condition is None:
            return empty.expand(shape)
        there = condition.flatten(1).any(1)[:, None, None]
        return torch.where(there, condition.to(x), empty).expand(shape)

    @property
    def has_null_class(self) -> bool:
        """Whether the network knows "no class" or the empty text, which guidance needs."""
        return self.context_shape is not None or bool(getattr(self.model, "null_class", False))

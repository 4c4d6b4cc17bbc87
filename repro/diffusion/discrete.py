"""Discrete diffusion: noise schedules, the choice of fewer steps, and the distributions that follow from both.

Ho et al. 2020 ("DDPM") and Nichol and Dhariwal 2021 ("iDDPM"), as DiT and U-DiT use them. Constants are float64 and
become float32 once they are gathered for a batch. t counts the steps of a process from 0; t = 0 is one step of noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from repro.errors import UsageError

Prediction = Literal["epsilon", "x0"]
Variance = Literal["learned_range", "fixed_small", "fixed_large"]
NoiseSchedule = Literal["linear", "squaredcos_cap_v2"]
MAX_BETA = 0.999


def betas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Noise variance that each of the steps adds: (steps,) float64.

    linear: evenly from 0.0001 to 0.02 for 1000 steps, times 1000 / steps (DDPM). squaredcos_cap_v2: from a squared
    cosine of abar, at most 0.999 (iDDPM, Equation 17). UsageError for an unknown schedule.
    """
    with torch.device("cpu"):
        if schedule == "linear":
            scale = 1000 / steps
            return torch.linspace(0.0001 * scale, 0.02 * scale, steps, dtype=torch.float64)
        if schedule == "squaredcos_cap_v2":
            abar = [math.cos(math.pi / 2 * (i / steps + 0.008) / 1.008) ** 2 for i in range(steps + 1)]
            pairs = zip(abar, abar[1:], strict=False)
            return torch.tensor([min(1 - b / a, MAX_BETA) for a, b in pairs], dtype=torch.float64)
    raise UsageError(f"unknown noise schedule {schedule!r}; known: linear, squaredcos_cap_v2")


def spaced_steps(total: int, spec: str | Sequence[int] | int) -> list[int]:
    """Which of the steps 0 ... total - 1 a shorter process has, increasing.

    spec: '' for all; a count such as '250', or counts of equally long sections such as '10,15,20' (also as a list),
    with the first and last step of each section included; or 'ddimN' for the N steps 0, i, 2i, ...

    UsageError where there are more steps than the section has, or no stride gives N.
    """
    if isinstance(spec, str):
        if spec.startswith("ddim"):
            return _strided(total, _number(spec.removeprefix("ddim"), spec))
        counts = [_number(part, spec) for part in spec.split(",")] if spec else [total]
    else:
        counts = [spec] if isinstance(spec, int) else list(spec)
    size, extra = divmod(total, len(counts))
    chosen: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        section = size + (index < extra)
        if not 0 <= count <= section or not any(counts):
            raise UsageError(f"{count} sampling steps cannot be taken of {section}: choose 1 to {section}")
        stride = (section - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # accumulated, as published: rounding of ties depends on it
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride
        start += section
    return sorted(set(chosen))


def _strided(total: int, count: int) -> list[int]:
    for stride in range(1, total + 1):
        if -(-total // stride) == count:
            return list(range(0, total, stride))
    raise UsageError(f"no stride takes exactly {count} of {total} steps ('ddim{count}')")


def _number(text: str, spec: str) -> int:
    if not text.strip().isdigit():
        raise UsageError(f"{spec!r} chooses no sampling steps; write '250', '10,15,20' or 'ddim25'")
    return int(text)


class Moments(NamedTuple):
    """Mean, variance and log variance of x_{t-1}, each of the shape of x or broadcastable to it; x0: the image."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x0: Tensor


class Process:
    """A diffusion process in some of the steps of a longer one, and every constant of it.

    Args:
        schedule: noise schedule of the whole process.
        total: steps of the whole process.
        steps: those that this process has, see `spaced_steps`.

    Attributes:
        timesteps: (T,) int64, the steps in the whole process: what a network is told.
        beta, abar, abar_prev, abar_next, posterior_variance, posterior_log_variance, mean_x0, mean_xt: (T,) float64.
            posterior_log_variance is clipped: that of t = 0, which is minus infinity, is replaced by that of t = 1.
    """

    def __init__(self, schedule: NoiseSchedule = "linear", total: int = 1000, steps: str | Sequence[int] = "") -> None:
        self.schedule: NoiseSchedule = schedule
        self.total = total
        with torch.device("cpu"):
            self.timesteps = torch.tensor(spaced_steps(total, steps))
            whole = (1 - betas(schedule, total)).cumprod(0)
            abar = whole[self.timesteps]
            one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
            self.beta = 1 - abar / torch.cat([one, abar[:-1]])  # of all steps too, as published: the last bits count
            alpha = 1 - self.beta
            self.abar = alpha.cumprod(0)
            self.abar_prev = torch.cat([one, self.abar[:-1]])
            self.abar_next = torch.cat([self.abar[1:], zero])
            rest = 1 - self.abar
            self.posterior_variance = self.beta * (1 - self.abar_prev) / rest
            # A process of a single step has no t = 1; its only posterior variance is never used, for no noise is added.
            second = self.posterior_variance[1:2] if len(self.beta) > 1 else self.beta
            self.posterior_log_variance = torch.cat([second, self.posterior_variance[1:]]).log()
            self.mean_x0 = self.beta * self.abar_prev.sqrt() / rest
            self.mean_xt = (1 - self.abar_prev) * alpha.sqrt() / rest

    def __len__(self) -> int:
        return len(self.beta)

    def respaced(self, steps: str | Sequence[int]) -> Process:
        """The process of fewer steps of the same schedule; its constants follow from its own betas."""
        return Process(self.schedule, self.total, steps)

    def fixed_large(self) -> Tensor:
        """Variances beta_t but for t = 0, which has the posterior variance of t = 1: (T,) float64."""
        return torch.cat([self.posterior_log_variance[:1].exp(), self.beta[1:]])


def gather(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] as float32 on the device of `like`: (N, 1, 1, ...) to broadcast against it. values: (T,) float64."""
    picked = values.to(t.device)[t].to(device=like.device, dtype=torch.float32)
    return picked.reshape(-1, *[1] * (like.ndim - 1))


def q_sample(process: Process, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (DDPM, Equation 4). x0, noise: (N, ...), t: (N,)."""
    return gather(process.abar.sqrt(), t, x0) * x0 + gather((1 - process.abar).sqrt(), t, x0) * noise


def posterior(process: Process, x0: Tensor, x_t: Tensor, t: Tensor) -> Moments:
    """Of q(x_{t-1} | x_t, x0) (DDPM, Equations 6 and 7), the log variance clipped."""
    return Moments(
        gather(process.mean_x0, t, x_t) * x0 + gather(process.mean_xt, t, x_t) * x_t,
        gather(process.posterior_variance, t, x_t),
        gather(process.posterior_log_variance, t, x_t),
        x0,
    )


def x0_from_epsilon(process: Process, x_t: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
    """The image of which x_t is the noisy version if epsilon is the noise."""
    recip, recipm1 = (1 / process.abar).sqrt(), (1 / process.abar - 1).sqrt()
    return gather(recip, t, x_t) * x_t - gather(recipm1, t, x_t) * epsilon


def epsilon_from_x0(process: Process, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """The noise in x_t if x0 is the image; inverse of `x0_from_epsilon`."""
    recip, recipm1 = (1 / process.abar).sqrt(), (1 / process.abar - 1).sqrt()
    return (gather(recip, t, x_t) * x_t - x0) / gather(recipm1, t, x_t)


def model_moments(
    process: Process,
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    clip: bool = False,
    prediction: Prediction = "epsilon",
    variance: Variance = "learned_range",
) -> Moments:
    """Of p(x_{t-1} | x_t), from a network's output (iDDPM, section 3.1).

    output: (N, 2 C, H, W), or (N, C, H, W) where the variance is fixed: the prediction, then the position of the log
    variance between the posterior's (-1) and ln beta (1), not limited. clip: limit the predicted image to [-1, 1].
    """
    channels = x_t.shape[1]
    predicted = output[:, :channels]
    if variance == "learned_range":
        if output.shape[1] != 2 * channels:
            raise ValueError(f"a learned variance needs {2 * channels} output channels, not {output.shape[1]}")
        share = (output[:, channels:] + 1) / 2
        low, high = gather(process.posterior_log_variance, t, x_t), gather(process.beta.log(), t, x_t)
        log_variance = share * high + (1 - share) * low
        values = log_variance.exp()
    elif variance == "fixed_small":
        log_variance, values = (
            gather(table, t, x_t) for table in (process.posterior_log_variance, process.posterior_variance)
        )
    else:
        table = process.fixed_large()
        log_variance, values = gather(table.log(), t, x_t), gather(table, t, x_t)
    x0 = predicted if prediction == "x0" else x0_from_epsilon(process, x_t, t, predicted)
    x0 = x0.clamp(-1, 1) if clip else x0
    return Moments(posterior(process, x0, x_t, t).mean, values, log_variance, x0)

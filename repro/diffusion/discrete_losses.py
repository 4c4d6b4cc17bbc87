"""Training of a discrete diffusion: squared error and variational term (Nichol and Dhariwal 2021, as DiT has it)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from repro.diffusion.discrete import Prediction, Process, Variance, model_moments, posterior, q_sample
from repro.diffusion.draws import Draws
from repro.errors import UsageError

LossKind = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
HALF_BIN = 1 / 255
EDGE = 0.999
SMALLEST = 1e-12


class Terms(NamedTuple):
    """Losses of each image, (N,) float32; mse and vb are None where the loss has no such term."""

    loss: Tensor
    mse: Tensor | None
    vb: Tensor | None


def flat_mean(x: Tensor) -> Tensor:
    """Mean over all axes but the first."""
    return x.flatten(1).mean(1)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two normal distributions with diagonal covariance, element by element, in nats."""
    difference = (mean1 - mean2).square() * (-log_variance2).exp()
    return 0.5 * (-1 + log_variance2 - log_variance1 + (log_variance1 - log_variance2).exp() + difference)


def _normal_cdf(x: Tensor) -> Tensor:
    """Approximate distribution function of the standard normal distribution."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """Log-probability in nats of the 8-bit level of each element of x under a normal distribution (DDPM, Equation 13).

    x: images in [-1, 1], of which latents are treated as some. Levels are 2/255 apart; the outermost reach to infinity.
    """
    precision = (-log_sd).exp()
    upper = _normal_cdf((x - mean + HALF_BIN) * precision)
    lower = _normal_cdf((x - mean - HALF_BIN) * precision)
    inner = torch.where(x > EDGE, 1 - lower, upper - lower)
    return torch.where(x < -EDGE, upper, inner).clamp(min=SMALLEST).log()


def variational_term(
    process: Process,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    prediction: Prediction = "epsilon",
    variance: Variance = "learned_range",
    clip: bool = False,
) -> Tensor:
    """One term of the variational bound in bits an element: (N,).

    KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), and at t = 0 the negative log-likelihood of x0.
    """
    true = posterior(process, x0, x_t, t)
    model = model_moments(process, output, x_t, t, clip=clip, prediction=prediction, variance=variance)
    divergence = flat_mean(normal_kl(true.mean, true.log_variance, model.mean, model.log_variance))
    likelihood = flat_mean(-discretised_log_likelihood(x0, model.mean, 0.5 * model.log_variance))
    return torch.where(t.to(x0.device) == 0, likelihood, divergence) / math.log(2)


def training_terms(
    process: Process,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    kind: LossKind = "mse",
    prediction: Prediction = "epsilon",
    variance: Variance = "learned_range",
) -> Terms:
    """The training loss of each image from a network's output for x_t.

    mse: mean squared error of the prediction plus, with a learned variance, the variational term with weight 1, in
    which the prediction is a constant: it trains the variance alone. rescaled_mse: that term times steps / 1000.
    kl: the variational term alone, for all of the output; rescaled_kl: times the number of steps. UsageError for
    another kind.
    """
    settings: dict[str, Any] = {"prediction": prediction, "variance": variance}
    if kind in ("kl", "rescaled_kl"):
        vb = variational_term(process, output, x0, x_t, t, **settings)
        return Terms(vb * len(process) if kind == "rescaled_kl" else vb, None, None)
    if kind not in ("mse", "rescaled_mse"):
        raise UsageError(f"unknown loss {kind!r}; known: mse, rescaled_mse, kl, rescaled_kl")
    channels = x0.shape[1]
    target = x0 if prediction == "x0" else noise
    mse = flat_mean((target - output[:, :channels]).square())
    if variance != "learned_range":
        return Terms(mse, mse, None)
    frozen = torch.cat([output[:, :channels].detach(), output[:, channels:]], dim=1)
    vb = variational_term(process, frozen, x0, x_t, t, **settings)
    vb = vb * (len(process) / 1000) if kind == "rescaled_mse" else vb
    return Terms(mse + vb, mse, vb)


class HybridLoss:
    """The loss that DiT and U-DiT train on; a number for each image in place of one for each pixel.

    Args:
        kind: see `training_terms`; the papers have `mse`.
    """

    def __init__(self, kind: LossKind = "mse") -> None:
        self.kind: LossKind = kind

    def __call__(
        self, net: Any, images: Tensor, labels: Tensor | None = None, *, augment: Any = None, draws: Draws
    ) -> Tensor:
        """(N,) losses. net: a `DiscreteDenoiser`; images: (N, C, H, W); labels: (N, label_dim) one-hot or None.

        The draws are, in this order, "timestep" (uniform), "label_dropout" (one an embedder of the network that drops
        labels) and "noise".
        """
        if augment is not None:
            raise UsageError("HybridLoss has no augmentation: remove Trajectory.augment")
        count = images.shape[0]
        t = draws.randint(len(net.process), [count], "timestep").to(images.device)
        drop = None
        if labels is not None and labels.shape[1] and net.class_dropout > 0:
            drop = draws.rand([count, net.label_draws], "label_dropout").to(images.device) < net.class_dropout
        noise = draws.randn(images.shape, "noise").to(images.device)
        x_t = q_sample(net.process, images, t, noise)
        output = net(x_t, t, labels, drop=drop)
        settings: dict[str, Any] = {"prediction": net.prediction, "variance": net.variance}
        return training_terms(net.process, output, images, x_t, t, noise, kind=self.kind, **settings).loss

"""Golden cases of U-DiT's discrete diffusion: schedules, losses, steps of the samplers, and the moving average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness import Case, RecordedNoise, Runner
from torch import Tensor, nn

from repro.diffusion import discrete
from repro.diffusion.discrete import Moments, Prediction, Process, Variance
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.discrete_losses import LossKind, training_terms
from repro.diffusion.discrete_samplers import (
    Step,
    ancestral,
    ancestral_step,
    ddim,
    ddim_reverse_step,
    ddim_step,
    sample,
)
from repro.training import ema
from repro.training.ema import ConstantEMA

TABLES: dict[str, Callable[[Process], Tensor]] = {
    "betas": lambda p: p.beta,
    "alphas_cumprod": lambda p: p.abar,
    "alphas_cumprod_prev": lambda p: p.abar_prev,
    "alphas_cumprod_next": lambda p: p.abar_next,
    "sqrt_alphas_cumprod": lambda p: p.abar.sqrt(),
    "sqrt_one_minus_alphas_cumprod": lambda p: (1 - p.abar).sqrt(),
    "log_one_minus_alphas_cumprod": lambda p: (1 - p.abar).log(),
    "posterior_variance": lambda p: p.posterior_variance,
    "posterior_log_variance_clipped": lambda p: p.posterior_log_variance,
    "posterior_mean_coef1": lambda p: p.mean_x0,
    "posterior_mean_coef2": lambda p: p.mean_xt,
    "sqrt_recip_alphas_cumprod": lambda p: (1 / p.abar).sqrt(),
    "sqrt_recipm1_alphas_cumprod": lambda p: (1 / p.abar - 1).sqrt(),
    "timestep_map": lambda p: p.timesteps,
}


class Published(NamedTuple):
    """What the options of the published builder make."""

    process: Process
    prediction: Prediction
    variance: Variance
    kind: LossKind

    @property
    def settings(self) -> dict[str, Any]:
        return {"prediction": self.prediction, "variance": self.variance}


def create(config: dict[str, Any]) -> Published:
    """The published builder's options, with its defaults."""
    steps, total = config.get("timestep_respacing", ""), config.get("diffusion_steps", 1000)
    process = Process(config.get("noise_schedule", "linear"), total, steps)
    fixed: Variance = "fixed_small" if config.get("sigma_small") else "fixed_large"
    rescaled: LossKind = "rescaled_mse" if config.get("rescale_learned_sigmas") else "mse"
    return Published(
        process,
        "x0" if config.get("predict_xstart") else "epsilon",
        "learned_range" if config.get("learn_sigma", True) else fixed,
        "rescaled_kl" if config.get("use_kl") else rescaled,
    )


class AnalyticModel(nn.Module):
    """The model of the cases' `model` field: (x, original timesteps) -> [eps, v] or eps."""

    img_resolution, in_channels, label_dim, class_dropout, label_draws = 4, 4, 0, 0.0, 0

    def __init__(self, learn_sigma: bool = True) -> None:
        super().__init__()
        self.learn_sigma = learn_sigma

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        tau = (t.float() / 1000).reshape(-1, 1, 1, 1)
        epsilon = torch.tanh(0.8 * x + tau - 0.3)
        return torch.cat([epsilon, torch.sin(1.3 * x + 2 * tau)], dim=1) if self.learn_sigma else epsilon


def output_of(made: Published, x: Tensor, t: Tensor) -> Tensor:
    return AnalyticModel(made.variance == "learned_range")(x, made.process.timesteps[t])


def moments_of(case: Case, made: Published) -> Moments:
    x, t = case.input("x"), case.input("t")
    output = output_of(made, x, t)
    return discrete.model_moments(made.process, output, x, t, clip=case.meta["clip_denoised"], **made.settings)


def run_schedule(case: Case) -> None:
    process = create(case.config).process
    for name in sorted(case.outputs):
        case.check(name, TABLES[name](process))


def run_spacing(case: Case) -> None:
    steps = discrete.spaced_steps(case.config["num_timesteps"], case.config["section_counts"])
    case.check("steps", torch.tensor(steps))


def run_q_sample(case: Case) -> None:
    process = create(case.config).process
    x0, t = case.input("x_start"), case.input("t")
    x_t = discrete.q_sample(process, x0, t, case.input("noise"))
    case.check("x_t", x_t)
    true = discrete.posterior(process, x0, x_t, t)
    case.check("posterior_mean", true.mean)
    case.check("posterior_variance", true.variance.expand_as(x0))
    case.check("posterior_log_variance", true.log_variance.expand_as(x0))


def run_losses(case: Case) -> None:
    made = create(case.config)
    x0, t, noise = (case.input(name) for name in ("x_start", "t", "noise"))
    x_t = discrete.q_sample(made.process, x0, t, noise)
    output = case.optional("model_output")
    output = output_of(made, x_t, t) if output is None else output.requires_grad_()
    terms = training_terms(made.process, output, x0, x_t, t, noise, kind=made.kind, **made.settings)
    found = {name: value for name, value in terms._asdict().items() if value is not None}
    for name in sorted(case.outputs - {"grad"}):
        case.check(name, found[name])
    if "grad" in case.outputs:
        torch.autograd.backward(terms.loss.mean())
        assert output.grad is not None
        case.check("grad", output.grad)


def run_ancestral(case: Case) -> None:
    made = create(case.config)
    moments = moments_of(case, made)
    found = moments._asdict() | {"pred_xstart": moments.x0}
    found["sample"] = ancestral_step(moments, case.input("t"), case.input("noise"))
    for name in sorted(case.outputs):
        case.check(name, found[name].expand_as(case.input("x")))


def eta_of(case: Case) -> float:
    return float(case.meta.get("eta", case.config.get("eta", 0.0)))


def run_ddim(case: Case) -> None:
    made = create(case.config)
    x0, x, t = moments_of(case, made).x0, case.input("x"), case.input("t")
    case.check("sample", ddim_step(made.process, x0, x, t, case.input("noise"), eta_of(case)))
    if "pred_xstart" in case.outputs:
        case.check("pred_xstart", x0)


def run_ddim_reverse(case: Case) -> None:
    made = create(case.config)
    x0 = moments_of(case, made).x0
    case.check("sample", ddim_reverse_step(made.process, x0, case.input("x"), case.input("t")))
    if "pred_xstart" in case.outputs:
        case.check("pred_xstart", x0)


def run_loop(step: Callable[[Case], Step]) -> Runner:
    """A runner for a whole sampler, of which `step` makes the step."""
    return lambda case: _run_loop(case, step(case))


def _run_loop(case: Case, step: Step) -> None:
    config = case.config
    net = DiscreteDenoiser(
        AnalyticModel(config.get("learn_sigma", True)),
        config.get("noise_schedule", "linear"),
        config.get("diffusion_steps", 1000),
        "x0" if config.get("predict_xstart") else "epsilon",
        "fixed_small" if config.get("sigma_small") else "fixed_large",
    )
    steps = config.get("timestep_respacing", "")
    noise = RecordedNoise(case.input("draws"))
    clip = case.meta["clip_denoised"]
    case.check("sample", sample(net, case.input("z"), None, noise, None, steps=steps, step=step, clip_denoised=clip))
    assert noise.calls == len(net.process.respaced(steps))


def run_ema(case: Case) -> None:
    profile = ConstantEMA(1 / (1 - case.config["decay"]))
    average, found = case.input("param0"), []
    for step, weights in enumerate(case.input("params")):
        ema.update(average, weights, profile.beta(step, 1))
        found.append(average.clone())
    case.check("ema", torch.stack(found))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("schedule", "create_diffusion"): run_schedule,
    ("schedule", "space_timesteps"): run_spacing,
    ("schedule", "q_sample"): run_q_sample,
    ("loss", "training_losses"): run_losses,
    ("loss", "training_losses_grad"): run_losses,
    ("sampler", "p_sample"): run_ancestral,
    ("sampler", "ddim_sample"): run_ddim,
    ("sampler", "ddim_reverse_sample"): run_ddim_reverse,
    ("sampler", "p_sample_loop"): run_loop(lambda case: ancestral),
    ("sampler", "ddim_sample_loop"): run_loop(lambda case: ddim(eta_of(case))),
    ("ema", "update_ema"): run_ema,
}

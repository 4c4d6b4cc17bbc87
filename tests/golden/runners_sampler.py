"""Golden cases of samplers and of the per-image random generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import Case, RecordedNoise, Runner
from torch import Tensor

from repro.diffusion.ablation import ablation_sampler
from repro.diffusion.draws import StackedGenerator
from repro.diffusion.images import to_uint8
from repro.diffusion.precond import Precond
from repro.diffusion.samplers import Denoiser, count_nfe, edm_sampler

SAMPLERS: dict[str, Callable[..., Tensor]] = {"edm_sampler": edm_sampler, "ablation_sampler": ablation_sampler}


class AnalyticDenoiser:
    """Exact denoiser of simple data in float64: N(mu, s^2), or two peaks of width s at +-mu. Records noise levels."""

    def __init__(self, case: Case) -> None:
        settings = case.meta["denoiser"]
        self.two_peaks = "tanh" in settings["formula"]
        self.s = float(settings["s"])
        self.mu = case.input("mu").double()
        self.sigma_min = float(settings["sigma_min"])
        self.sigma_max = float(settings["sigma_max"])
        self.table = None if settings["round_sigma"] == "identity" else case.input("u_table")
        self.sigmas: list[float] = []

    def round_sigma(self, sigma: Tensor) -> Tensor:
        if self.table is None:
            return sigma
        distances = (sigma.float().reshape(-1, 1) - self.table).abs()
        return self.table[distances.argmin(dim=1)].reshape(sigma.shape).to(sigma.dtype)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        assert x.dtype == torch.float64
        self.sigmas.append(float(sigma))
        total = self.s**2 + sigma.double() ** 2
        mean = self.mu * torch.tanh(self.mu * x / total) if self.two_peaks else self.mu
        return (self.s**2 * x + sigma**2 * mean) / total


def _denoiser(case: Case) -> Denoiser:
    if "denoiser" in case.meta:
        return AnalyticDenoiser(case)
    net = case.network()
    assert isinstance(net, Precond)
    return net


def _sample(case: Case, sampler: Callable[..., Tensor], net: Denoiser, steps: int) -> Tensor:
    noise = RecordedNoise(case.optional("noise"))
    progress: list[tuple[int, int]] = []

    def note(i: int, n: int) -> None:
        progress.append((i, n))

    x = sampler(net, case.input("latents"), case.optional("class_labels"), noise, note)
    assert x.dtype == torch.float64
    assert noise.calls == steps, "one noise tensor is drawn in every step"
    assert progress == [(i, steps) for i in range(steps)]
    return x


def run_sampler(case: Case) -> None:
    function = SAMPLERS[case.meta["name"]]
    images: list[Tensor] = []
    calls: list[list[float]] = []
    for config in case.meta["config"]["cases"]:
        net = _denoiser(case)
        images.append(_sample(case, partial(function, **config), net, config["num_steps"]))
        if isinstance(net, AnalyticDenoiser):
            calls.append(net.sigmas)
            assert len(net.sigmas) == count_nfe(partial(function, **config))
    case.check("x", torch.stack(images))
    if "uint8" in case.outputs:
        case.check("uint8", to_uint8(torch.stack(images)))
    if calls:
        case.check("nfe", np.array([len(levels) for levels in calls]))
        width = case.arrays["out/sigmas"].shape[1]
        padded = [levels + [math.nan] * (width - len(levels)) for levels in calls]
        case.check("sigmas", np.array(padded))


def run_seeds(case: Case) -> None:
    config = case.config
    generator = StackedGenerator(config["seeds"], config["device"])
    shape = [len(config["seeds"]), *config["shape"]]
    case.check("latents", generator.randn(shape))
    case.check("labels", generator.randint(config["label_dim"]))
    case.check("noise", generator.randn_like(torch.zeros(shape, dtype=torch.float64)))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("sampler", "edm_sampler"): run_sampler,
    ("sampler", "ablation_sampler"): run_sampler,
    ("sampler", "StackedRandomGenerator"): run_seeds,
}

"""Fingerprints of discrete diffusion: a careless edit of process, loss, network, sampler or average moves them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import Fault
from record_factory import resolved

from repro.cells import Resolved
from repro.config import build
from repro.diffusion import discrete, discrete_denoiser, discrete_losses, discrete_samplers
from repro.models import dit_layers, udit_layers
from repro.results.discrete_probes import NormalData, losses, sampler, timesteps
from repro.results.fingerprint import differences, fingerprint
from repro.results.references import load_fingerprints
from repro.training import ema, optimizers

DIT, GUIDED, UDIT = "dit-s-2", "dit-s-2 guided", "udit-s"
FOUND: dict[str, dict[str, Any]] = {}


def cell(name: str) -> Resolved:
    row, *guided = name.split()
    bindings = ["ancestral_sampler.guidance = 1.5"] if guided else []
    return resolved(f"udit/table2/{row}/imagenet256-400k", bindings=bindings)


@pytest.fixture
def healthy(data: Path) -> Any:
    def compute(name: str) -> dict[str, Any]:
        if name not in FOUND:
            FOUND[name] = fingerprint(cell(name), data)
        return FOUND[name]

    return compute


ONE_DRAW = ('net.label_draws], "label_dropout")', '1], "label_dropout").expand(-1, net.label_draws)')
FFN = udit_layers.ReparameterisedFeedForward
FAULTS = [
    Fault("schedule: beta_max", DIT, discrete, "betas", "0.02 * scale", "0.02002 * scale"),
    Fault("schedule: beta_min", DIT, discrete, "betas", "linspace(0.0001", "linspace(0.000101"),
    Fault("process: steps", DIT, discrete, "spaced_steps", "round(position)", "int(position)"),
    Fault("process: posterior", DIT, discrete.Process, "__init__", "(1 - self.abar_prev) / rest", "1"),
    Fault("variance: share", DIT, discrete, "model_moments", "share * high", "0.99 * share * high"),
    Fault("variance: end", DIT, discrete, "model_moments", "+ 1) / 2", "+ 1.01) / 2"),
    Fault("loss: weight", DIT, discrete_losses, "training_terms", "mse + vb,", "mse + 0.99 * vb,"),
    Fault("loss: frozen mean", DIT, discrete_losses, "training_terms", ".detach()", ""),
    Fault("loss: last step", DIT, discrete_losses, "variational_term", "== 0, likelihood", "< 0, likelihood"),
    Fault("loss: nats", DIT, discrete_losses, "variational_term", "math.log(2)", "0.7"),
    Fault("loss: bins", DIT, discrete_losses, "discretised_log_likelihood", "HALF_BIN", "(1.01 * HALF_BIN)"),
    Fault("loss: noise", DIT, discrete_losses.HybridLoss, "__call__", '"noise"', '"timestep"'),
    Fault("loss: steps", DIT, discrete_losses.HybridLoss, "__call__", "randint(len(net.process)", "randint(999"),
    Fault("labels: dropout", DIT, discrete_losses.HybridLoss, "__call__", "< net.class", "< 1.02 * net.class"),
    Fault("labels: one draw", UDIT, discrete_losses.HybridLoss, "__call__", ONE_DRAW[0], ONE_DRAW[1]),
    Fault("labels: null class", DIT, dit_layers.LabelEmbedder, "forward", "self.num_classes, y)", "0, y)"),
    Fault("labels: none", GUIDED, discrete_denoiser.DiscreteDenoiser, "_classes", ", self.label_dim)", ", 0)"),
    Fault("sampler: scale", GUIDED, discrete_samplers, "guide", "scale * (c - u)", "1.01 * scale * (c - u)"),
    Fault("sampler: channels", GUIDED, discrete_samplers, "_evaluator", "min(guided_channels, net", "(net"),
    Fault("sampler: told", DIT, discrete_samplers, "sample", "process.timesteps[t]", "t"),
    Fault("sampler: sd", DIT, discrete_samplers, "ancestral_step", "0.5 * moments", "0.505 * moments"),
    Fault("sampler: last noise", DIT, discrete_samplers, "ancestral_step", "(t != 0)", "(t >= 0)"),
    Fault("ema: length", DIT, ema.ConstantEMA, "beta", "self.length_nimg", "(1.01 * self.length_nimg)"),
    Fault("adamw: beta2", DIT, optimizers.AdamW, "create", "self.betas[1])", "0.99)"),
    Fault("adamw: decay", DIT, optimizers.AdamW, "create", "=self.weight_decay", "=0.01"),
    Fault("network: time", DIT, dit_layers.TimestepEmbedder, "forward", "(t))", "(t + 1))"),
    Fault("network: rope", UDIT, udit_layers.TokenAttention, "forward", "if self.rope", "if False"),
    Fault("network: identity", UDIT, FFN, "_kernel", "one + 1", "one"),
    Fault("network: fused alone", UDIT, FFN, "fused", "copy_(bias)", "copy_(0.9 * bias)"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.label)
def test_a_planted_fault_is_noticed(fault: Fault, healthy: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = healthy(fault.cell)
    resolution = cell(fault.cell)
    for module in (discrete, discrete_losses, discrete_samplers):
        if inspect.ismodule(fault.owner) and module is not fault.owner and hasattr(module, fault.name):
            monkeypatch.setattr(module, fault.name, late(fault))  # what is imported would stay healthy
    fault.plant(monkeypatch)
    assert differences(fingerprint(resolution, data), reference)


def late(fault: Fault) -> Any:
    """Whatever the fault's owner has under its name when it is called."""
    return lambda *args, **kwargs: getattr(fault.owner, fault.name)(*args, **kwargs)


def test_epsilon_of_the_norms(healthy: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = healthy(DIT)
    monkeypatch.setattr(dit_layers, "NORM_EPS", 1.01e-6)
    assert differences(fingerprint(cell(DIT), data), reference)


@pytest.mark.parametrize(
    "binding",
    [
        "ConstantEMA.length_nimg = 2_600_000",
        "ancestral_sampler.guidance = 1.01",
        "ancestral_sampler.clip_denoised = True",
        "DiscreteDenoiser.noise_schedule = 'squaredcos_cap_v2'",
        "DiscreteDenoiser.prediction = 'x0'",
        "HybridLoss.kind = 'rescaled_kl'",
        "DiT.class_dropout = 0.12",
        "DiT.learn_sigma = False",
    ],
)
def test_a_changed_setting_is_noticed(binding: str, healthy: Any, data: Path) -> None:
    changed = resolved(cell(DIT).cell.name, bindings=[binding])
    assert differences(fingerprint(changed, data), healthy(DIT))


@pytest.mark.parametrize("name", [DIT, UDIT])
def test_is_the_committed_one(healthy: Any, name: str) -> None:
    committed = load_fingerprints("udit/table2")[f"udit/table2/{name}/imagenet256-400k"]["values"]
    assert differences(healthy(name), committed) == []


def test_the_stand_in_samples_its_data() -> None:
    """Normal data of sd 0.5 come out of 250 steps with a variance at the posterior's end of the range."""
    net = build(resolved("udit/table2/dit-s-2/imagenet256-400k").trajectory.args["denoiser"])
    stand_in = NormalData(net)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, 4, 1, 1, generator=generator)

    def noise(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator)

    end = discrete_samplers.ancestral_sampler(stand_in, start, None, noise)  # type: ignore[arg-type]
    assert float(end.std()) == pytest.approx(0.5, rel=0.05) and abs(float(end.mean())) < 0.03


def test_what_the_probes_give() -> None:
    base = cell(DIT)
    net, loss = build(base.trajectory.args["denoiser"]), build(base.trajectory.args["loss"])
    found = losses(loss, net)
    assert found["loss_timestep"] == timesteps(net).tolist() == [0, 1, 250, 500, 999]
    assert found["loss_dropped"] == [1, 1, 0, 0, 0]
    # x = sqrt(1 - beta_0) 0.5 - 2 sqrt(beta_0), beta_0 = 0.0001
    assert found["loss_noisy"][0] == pytest.approx(0.499975 - 0.02, abs=1e-6)
    path = sampler(build(base.evaluation.args["sampler"]), net)
    assert path["sampler_timestep"][0] == 999 and path["sampler_timestep"][-1] == 0
    assert path["sampler_timestep"] == sorted(path["sampler_timestep"], reverse=True)
    guided = sampler(build(cell(GUIDED).evaluation.args["sampler"]), net)
    assert guided["sampler_timestep"] == path["sampler_timestep"], "both halves in one call"
    moved = [a != b for a, b in zip(guided["sampler_path"], path["sampler_path"], strict=True)]
    assert moved == [True, True, True, False], "the fourth channel is not guided"

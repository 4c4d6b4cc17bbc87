"""Fingerprints of ScaleLong's cells: a careless edit of schedule, loss, network, scaling or sampler moves them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from mutants import Fault
from record_factory import resolved

from repro.diffusion import vp_losses, vp_samplers, vp_sde
from repro.models import skips, uvit
from repro.results.fingerprint import differences, fingerprint
from repro.results.references import load_fingerprints

LS, CS, TEXT = "ls/cifar10-uvit-s2", "cs/cifar10-uvit-s2", "cs/coco-uvit-s2"
FOUND: dict[str, dict[str, Any]] = {}


@pytest.fixture
def healthy(data: Path) -> Any:
    def compute(name: str) -> dict[str, Any]:
        if name not in FOUND:
            FOUND[name] = fingerprint(resolved(f"scalelong/table1/{name}"), data)
        return FOUND[name]

    return compute


EM, SOLVER = "euler_maruyama_sampler", vp_samplers.Solver
FAULTS = [
    Fault("schedule: integral", CS, vp_sde.LinearSDE, "integral", "/ 2", "/ 2.001"),
    Fault("schedule: betas", TEXT, vp_sde.DiscreteBetas, "__init__", "0.00085", "0.00086"),
    Fault(
        "schedule: knots",
        TEXT,
        vp_sde.DiscreteBetas,
        "__init__",
        "torch.arange(1, self.steps + 1",
        "torch.arange(self.steps",
    ),
    Fault(
        "loss: dropped", TEXT, vp_losses.NoiseLoss, "__call__", ">= net.class_dropout", ">= 1.02 * net.class_dropout"
    ),
    Fault("loss: step", TEXT, vp_losses.NoiseLoss, "__call__", '"time") + 1)', '"time") + 0)'),
    Fault("loss: noise", CS, vp_losses.NoiseLoss, "__call__", "(goal - ", "(0.99 * goal - "),
    Fault("network: time", CS, vp_sde.VPDenoiser, "raw", "self.process.time_factor)", "1000)"),
    Fault("network: joined", CS, uvit.Block, "forward", "[x, skip]", "[skip, x]"),
    Fault("skips: exponent", CS, skips.ConstantScaling, "factors", "**index", "**(index + 1)"),
    Fault("skips: order", CS, skips.ConstantSkips, "forward", "number - 1", "-number"),
    Fault("skips: gate", LS, skips, "calibrate", "torch.relu(layer1(means))", "layer1(means)"),
    Fault("sampler: drift", CS, vp_samplers, EM, "(x / 2 + share", "(x / 2.01 + share"),
    Fault("sampler: last noise", CS, vp_samplers, EM, "and s > 0", ""),
    Fault("preview: order", CS, SOLVER, "third", "/ r2", "/ (1.01 * r2)"),
    Fault("preview: inner points", CS, SOLVER, "default_times", "index / order", "index / (order + 0.01)"),
    Fault("second package: guidance", TEXT, vp_samplers, "_guided", "guidance * (told", "1.01 * guidance * (told"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.label)
def test_a_planted_fault_is_noticed(fault: Fault, healthy: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = healthy(fault.cell)
    vp_sde.make_schedule.cache_clear()
    fault.plant(monkeypatch)
    if inspect.ismodule(fault.owner) and fault.name == EM:
        changed = getattr(vp_samplers, EM)
        monkeypatch.setitem(__import__("repro.config").config.REGISTRY, EM, changed)
    assert differences(fingerprint(resolved(f"scalelong/table1/{fault.cell}"), data), reference)
    vp_sde.make_schedule.cache_clear()


@pytest.mark.parametrize(
    "binding",
    [
        "ConstantScaling.kappa = 0.51",
        "preview/dpm_solver_sampler.evaluations = 46",
        "preview/dpm_solver_sampler.t_end = 1.1e-4",
        "euler_maruyama_sampler.t_min = 1.1e-3",
        "VPDenoiser.target = 'x0'",
        "ConstantEMA.length_nimg = 1_300_000",
        "UViT.conv = False",
    ],
)
def test_a_changed_setting_is_noticed(binding: str, healthy: Any, data: Path) -> None:
    changed = resolved(f"scalelong/table1/{CS}", bindings=[binding])
    assert differences(fingerprint(changed, data), healthy(CS))


@pytest.mark.parametrize("name", [LS, TEXT])
def test_is_the_committed_one(healthy: Any, name: str) -> None:
    committed = load_fingerprints("scalelong/table1")[f"scalelong/table1/{name}"]["values"]
    assert differences(healthy(name), committed) == []

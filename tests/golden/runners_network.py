"""Golden cases of networks, preconditioners and noise schedules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import Case, Runner
from torch import Tensor, nn

from repro.diffusion import schedules
from repro.diffusion.precond import Precond, VPPrecond, iDDPMPrecond
from repro.models.adm import DhariwalUNet


@contextmanager
def recorded_rms(net: nn.Module) -> Iterator[dict[str, float]]:
    """Root mean square of the output of every entry of `enc` and `dec`, by name, in the order of execution."""
    rms: dict[str, float] = {}
    handles = []
    for part in ("enc", "dec"):
        for name, module in net.get_submodule(part).named_children():

            def hook(_: nn.Module, __: Any, output: Tensor, key: str = f"{part}.{name}") -> None:
                rms[key] = float(output.double().square().mean().sqrt())

            handles.append(module.register_forward_hook(hook))
    try:
        yield rms
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_network(case: Case) -> None:
    net = case.network()
    labels = {name: value for name in ("class_labels", "augment_labels") if (value := case.optional(name)) is not None}
    with recorded_rms(net) as rms:
        output = net(case.input("x"), case.input("noise_labels"), **labels)
    case.check("y", output)
    if "block_rms" in case.outputs:
        assert list(rms) == case.meta["blocks"]
        case.check("block_rms", torch.tensor(list(rms.values()), dtype=torch.float64))


@torch.no_grad()
def run_precond(case: Case) -> None:
    net = case.network()
    assert isinstance(net, Precond)
    seen: dict[str, Tensor] = {}

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.update(net_input=args[0], c_noise=args[1], F=output)

    net.model.register_forward_hook(hook)
    sigma = case.input("sigma")
    augment_labels = case.optional("augment_labels")
    kwargs = {} if augment_labels is None else {"augment_labels": augment_labels}
    case.check("D", net(case.input("x"), sigma, case.optional("class_labels"), **kwargs))
    for name, value in seen.items():
        case.check(name, value)
    case.check("round_sigma", net.round_sigma(sigma))
    for limit in ("sigma_min", "sigma_max"):
        assert abs(getattr(net, limit) - float(case.meta[limit])) <= 1e-6 * getattr(net, limit) or (
            getattr(net, limit) == float(case.meta[limit])
        )


def run_edm_steps(case: Case) -> None:
    """Outputs are named N<steps>_min<sigma_min>_max<sigma_max>_rho<rho>."""
    for name in sorted(case.outputs):
        match = re.fullmatch(r"N(\d+)_min([\d.]+)_max([\d.]+)_rho([\d.]+)", name)
        assert match, f"cannot read the settings in the output name {name!r}"
        steps, *others = match.groups()
        low, high, rho = map(float, others)
        case.check(name, schedules.edm_sigmas(int(steps), low, high, rho))


def run_vp_schedule(case: Case) -> None:
    net = VPPrecond(_meta_network(), **case.config)
    sigma = net.sigma(case.input("t"))
    case.check("sigma", sigma)
    case.check("t_back", net.sigma_inv(sigma))
    case.check("limits", torch.tensor([net.sigma_min, net.sigma_max]))


def run_iddpm_table(case: Case) -> None:
    net = iDDPMPrecond(_meta_network(), **case.config)
    # The published recurrence is only this precise near its low end (EDM golden cases, schedule).
    case.check_entries("u", net.u, relative=1e-3)
    table = schedules.iddpm_u(net.M, case.config["C_1"], case.config["C_2"], dtype=torch.float64)
    case.check_entries("u_sampler", table, relative=1e-3)
    sigma = case.input("sigma")
    case.check("index", net.nearest_level(sigma))
    case.check_entries("rounded", net.round_sigma(sigma), relative=1e-3)
    case.check_entries("limits", torch.tensor([net.sigma_min, net.sigma_max]), relative=1e-3)


def _meta_network() -> nn.Module:
    """Some network without memory: the schedule of a preconditioner does not depend on it."""
    with torch.device("meta"):
        return DhariwalUNet(8, 3, 6, model_channels=32, channel_mult=(1,), num_blocks=1)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("network", "SongUNet"): run_network,
    ("network", "DhariwalUNet"): run_network,
    ("precond", "VPPrecond"): run_precond,
    ("precond", "VEPrecond"): run_precond,
    ("precond", "iDDPMPrecond"): run_precond,
    ("precond", "EDMPrecond"): run_precond,
    ("schedule", "edm time steps"): run_edm_steps,
    ("schedule", "VPPrecond.sigma"): run_vp_schedule,
    ("schedule", "iDDPMPrecond.u"): run_iddpm_table,
}

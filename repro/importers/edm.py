"""Networks of Karras et al. 2022 (EDM) from their published constructor arguments and state dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repro.diffusion import precond
from repro.models.adm import DhariwalUNet
from repro.models.song import SongUNet

NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
PRECONDITIONERS: dict[str, tuple[type[precond.Precond], str]] = {
    "VPPrecond": (precond.VPPrecond, "SongUNet"),
    "VEPrecond": (precond.VEPrecond, "SongUNet"),
    "iDDPMPrecond": (precond.iDDPMPrecond, "DhariwalUNet"),
    "EDMPrecond": (precond.EDMPrecond, "DhariwalUNet"),
}
NEUTRAL = (0, None, False)
# The published float32 recurrence of the iDDPM table is only this precise near its low end (relative, per entry).
U_TOLERANCE = 1e-3
FILTER_TOLERANCE = 1e-6


def build(name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The published network `name` with its weights, in evaluation mode. Errors: see `repro.importers.build`."""
    arguments = dict(config)
    # Building draws initial values that the state dict replaces: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        if name in NETWORKS:
            net = _network(name, arguments)
        elif name in PRECONDITIONERS:
            net = _preconditioned(name, arguments)
        else:
            known = ", ".join([*NETWORKS, *PRECONDITIONERS])
            raise ValueError(f"unknown EDM network {name!r}; known: {known}")
    load_exactly(net, state_dict)
    return net.eval()


def _take(arguments: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Remove from `arguments` and return what `function` accepts."""
    names = inspect.signature(function).parameters
    return {key: arguments.pop(key) for key in list(arguments) if key in names}


def _refuse(name: str, arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        if not any(value is neutral or (value == neutral and neutral == 0) for neutral in NEUTRAL):
            raise ValueError(f"{name} has no argument {key!r} (its value is {value!r})")


def _network(name: str, arguments: dict[str, Any]) -> nn.Module:
    if name not in NETWORKS:
        raise ValueError(f"unknown model_type {name!r}; known: {', '.join(NETWORKS)}")
    net = NETWORKS[name](**_take(arguments, NETWORKS[name]))
    _refuse(name, arguments)
    return net


def _preconditioned(name: str, arguments: dict[str, Any]) -> nn.Module:
    cls, default_model = PRECONDITIONERS[name]
    own = _take(arguments, cls)
    limits = {key: arguments.pop(key) for key in ("sigma_min", "sigma_max") if key in arguments}
    channels = arguments.pop("img_channels")
    arguments["in_channels"] = channels
    arguments["out_channels"] = channels * 2 if name == "iDDPMPrecond" else channels
    net = cls(_network(arguments.pop("model_type", default_model), arguments), **own)
    if limits and name != "EDMPrecond":
        raise ValueError(f"{name} has no argument {next(iter(limits))!r}")
    for key, value in limits.items():
        setattr(net, key, float(value))
    return net


def load_exactly(net: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict whose keys and shapes must be those of net, and whose constant buffers have the values of net.

    ValueError names the first key that is missing, left over, of another shape or of another value.
    """
    own = net.state_dict()
    for key in own:
        if key not in state_dict:
            raise ValueError(f"the checkpoint lacks {key!r}")
    for key, value in state_dict.items():
        if key not in own:
            raise ValueError(f"the checkpoint has {key!r}, which the network has not")
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key!r} is {tuple(value.shape)} in the checkpoint, {tuple(own[key].shape)} in the network"
            )
        _check_constant(key, own[key], value)
    net.load_state_dict(state_dict)


def _check_constant(key: str, ours: Tensor, theirs: Tensor) -> None:
    leaf = key.rpartition(".")[2]
    if leaf == "resample_filter":
        same = torch.allclose(ours, theirs.to(ours), rtol=FILTER_TOLERANCE, atol=0)
    elif leaf == "u":
        same = torch.allclose(ours, theirs.to(ours), rtol=U_TOLERANCE, atol=0)
    else:
        return
    if not same:
        raise ValueError(f"{key!r} of the checkpoint is not what its arguments give")

"""Networks of Karras et al. 2022 (EDM) from their published constructor arguments and state dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from repro.config import Node
from repro.diffusion import precond
from repro.importers.nodes import Description, node_of
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


def describe(name: str, config: Mapping[str, Any]) -> Description:
    """The published network `name` as one of ours. ValueError for an unknown name or argument."""
    arguments = dict(config)
    if name in NETWORKS:
        return Description(_network(name, arguments))
    if name in PRECONDITIONERS:
        return _preconditioned(name, arguments)
    known = ", ".join([*NETWORKS, *PRECONDITIONERS])
    raise ValueError(f"unknown EDM network {name!r}; known: {known}")


def _take(arguments: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Remove from `arguments` and return what `function` accepts."""
    names = inspect.signature(function).parameters
    return {key: arguments.pop(key) for key in list(arguments) if key in names}


def _refuse(name: str, arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        if not any(value is neutral or (value == neutral and neutral == 0) for neutral in NEUTRAL):
            raise ValueError(f"{name} has no argument {key!r} (its value is {value!r})")


def _network(name: str, arguments: dict[str, Any]) -> Node:
    if name not in NETWORKS:
        raise ValueError(f"unknown model_type {name!r}; known: {', '.join(NETWORKS)}")
    node = node_of(NETWORKS[name], _take(arguments, NETWORKS[name]))
    _refuse(name, arguments)
    return node


def _preconditioned(name: str, arguments: dict[str, Any]) -> Description:
    cls, default_model = PRECONDITIONERS[name]
    own = _take(arguments, cls)
    limits: dict[str, float] = {k: arguments.pop(k) for k in ("sigma_min", "sigma_max") if k in arguments}
    if "img_channels" not in arguments:
        raise ValueError(f"{name} needs the argument 'img_channels'")
    channels = arguments.pop("img_channels")
    arguments["in_channels"] = channels
    arguments["out_channels"] = channels * 2 if name == "iDDPMPrecond" else channels
    node = node_of(cls, {"model": _network(arguments.pop("model_type", default_model), arguments), **own})
    if limits and name != "EDMPrecond":
        raise ValueError(f"{name} has no argument {next(iter(limits))!r}")
    return Description(node, limits)

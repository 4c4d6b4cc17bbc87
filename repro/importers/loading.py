"""A published state dict must be exactly that of the network: every key, every shape, every constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Node
from repro.models.dit import DiT, positions
from repro.models.layers import resampling_kernel

# Relative, per entry. The published float32 recurrence of the iDDPM table is only this precise near its low end.
TOLERANCES = {"resample_filter": 1e-6, "u": 1e-3}
POSITIONS_TOLERANCE = 1e-6
SHOWN = 10


def check_names(net: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError that names the first key that is missing, left over or of another shape, and how many there are."""
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    lacking = [key for key in own if key not in shapes]
    if lacking:
        raise ValueError(f"the checkpoint lacks {lacking[0]!r}{_others(lacking)}")
    beyond = [key for key in shapes if key not in own]
    if beyond:
        raise ValueError(f"the checkpoint has {beyond[0][:120]!r}, which the network has not{_others(beyond)}")
    for key, shape in shapes.items():
        if shape != own[key]:
            raise ValueError(f"{key!r} is {shape} in the checkpoint, {own[key]} in the network")


def _others(keys: list[str]) -> str:
    if len(keys) == 1:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f" ({len(keys)} such keys; next {', '.join(repr(key[:120]) for key in keys[1:SHOWN])}{more})"


def check_constant(key: str, expected: Tensor | None, value: Tensor) -> None:
    """ValueError where a buffer that follows from the arguments has another value in the checkpoint."""
    if expected is None or value.is_meta:
        return
    leaf = key.rpartition(".")[2]
    absolute = POSITIONS_TOLERANCE if leaf == "pos_embed" else 0.0
    if not torch.allclose(expected, value.to(expected), rtol=TOLERANCES.get(leaf, 0.0), atol=absolute):
        raise ValueError(f"{key!r} of the checkpoint is not what its arguments give")


def constants(net: nn.Module, node: Node) -> dict[str, Tensor]:
    """The buffers of `net` that follow from the arguments in `node`, by key. `net` may be on the device `meta`."""
    found = {}
    for key, value in net.named_buffers(remove_duplicate=False):
        leaf = key.rpartition(".")[2]
        if leaf in TOLERANCES:
            found[key] = value if not value.is_meta else resampling_kernel(_argument(node, "resample_filter") or (1, 1))
        elif leaf == "pos_embed" and isinstance(owner := net.get_submodule(key.rpartition(".")[0]), DiT):
            grid = owner.img_resolution // _argument(node, "patch_size")
            found[key] = positions(value.shape[2], grid).float()[None] if value.is_meta else value
    return found


def _argument(node: Node, name: str) -> Any:
    """An argument of a node or of one within it; None where none has it."""
    if name in node.args:
        return node.args[name]
    inner = (_argument(value, name) for value in node.args.values() if isinstance(value, Node))
    return next((value for value in inner if value is not None), None)


def load_exactly(net: nn.Module, node: Node, state: Mapping[str, Tensor]) -> None:
    """Load a state dict whose keys and shapes must be those of net, and whose constants have the values of net.

    Positions may be any, and are kept: a network is the same function of them. ValueError names the first key that is
    missing, left over, of another shape or of another value.
    """
    check_names(net, {key: tuple(value.shape) for key, value in state.items()})
    for key, expected in constants(net, node).items():
        if key.rpartition(".")[2] != "pos_embed":
            check_constant(key, expected, state[key])
    net.load_state_dict(state)

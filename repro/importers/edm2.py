"""Networks of Karras et al. 2024 (EDM2) from their published constructor arguments and state dicts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from repro.config import Node
from repro.diffusion.edm2 import EDM2Precond
from repro.importers.nodes import Description, node_of
from repro.models.edm2 import EDM2UNet

PUBLISHED = (
    "img_resolution", "img_channels", "label_dim", "model_channels", "channel_mult", "channel_mult_noise",
    "channel_mult_emb", "num_blocks", "attn_resolutions", "label_balance", "concat_balance", "resample_filter",
    "channels_per_head", "dropout", "res_balance", "attn_balance", "clip_act",
)  # fmt: skip
"""Arguments of the published network, all of configuration G; ours has more, for the ladder C to F."""


def describe(name: str, config: Mapping[str, Any]) -> Description:
    """`Precond` or `UNet` as ours. ValueError for an unknown name or argument."""
    arguments = dict(config)
    if name == "UNet":
        node = _network(arguments)
    elif name == "Precond":
        own = _take(arguments, [key for key in inspect.signature(EDM2Precond).parameters if key != "model"])
        node = node_of(EDM2Precond, {"model": _network(arguments), **own})
    else:
        raise ValueError(f"unknown EDM2 network {name!r}; known: UNet, Precond")
    if arguments:
        raise ValueError(f"{name} has no argument {next(iter(arguments))!r}")
    return Description(node)


def _network(arguments: dict[str, Any]) -> Node:
    return node_of(EDM2UNet, _take(arguments, PUBLISHED))


def _take(arguments: dict[str, Any], names: Any) -> dict[str, Any]:
    """Remove from `arguments` and return what `names` holds."""
    return {key: arguments.pop(key) for key in list(arguments) if key in names}

"""Networks of U-ViT (Bao et al. 2022) and ScaleLong (Huang et al. 2023) from published arguments and state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repro.config import Node
from repro.errors import UsageError
from repro.importers.nodes import Description, node_of
from repro.models.skips import (
    ATTRIBUTE,
    NONE,
    ConstantScaling,
    InverseSqrt2Scaling,
    LearnableScaling,
    check_weights,
)
from repro.models.uvit import UViT

TEXT = "UViT (text-conditional variant)"
SHARED = {
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "depth": "depth",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "qk_scale": "qk_scale",
    "mlp_time_embed": "time_mlp",
    "conv": "conv",
    "skip": "long_skips",
}
"""Published argument -> ours, of equal meaning."""
DEFAULTS: dict[str, Any] = {"img_size": 224, "patch_size": 16, "depth": 12, "embed_dim": 768, "num_heads": 12}
EXECUTION = ("use_checkpoint",)
"""Published arguments that move no number."""


def describe(name: str, config: Mapping[str, Any]) -> Description:
    """The published network as one of ours. ValueError for an unknown name or argument.

    name: `UViT`, or its text-conditional variant. config: published arguments; `scalelong` and `kappa` of ScaleLong's
    code choose the scaling of the skips.
    """
    if name not in ("UViT", TEXT):
        raise ValueError(f"unknown U-ViT network {name!r}; known: UViT, {TEXT}")
    return Description(node_of(UViT, arguments(name, config)))


def arguments(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor arguments for published ones, the published defaults filled in."""
    left = {**DEFAULTS, **config}
    for key in EXECUTION:
        left.pop(key, None)
    if left.pop("norm_layer", None) not in (None, "LayerNorm"):
        raise ValueError(f"{name} has LayerNorm, no other norm_layer")
    width, heads = left.pop("embed_dim"), left.pop("num_heads")
    if width % heads:
        raise ValueError(f"{width} channels cannot be split into {heads} heads")
    own: dict[str, Any] = {"num_heads": heads, "head_channels": width // heads, "img_resolution": left.pop("img_size")}
    own |= {SHARED[key]: left.pop(key) for key in list(left) if key in SHARED}
    if name == TEXT:
        own |= {"context_dim": left.pop("clip_dim", 768), "context_tokens": left.pop("num_clip_token", 77)}
        left.pop("num_classes", None)
    else:
        own |= {"label_dim": max(left.pop("num_classes", -1), 0), "context_dim": 0}
    own["skip_scaling"] = _scaling(left.pop("scalelong", 0), left.pop("kappa", 0.5))
    if left:
        raise ValueError(f"{name} has no argument {next(iter(left))!r}")
    return own


def _scaling(code: int, kappa: float) -> Node | None:
    """What the published codes 0 ... 4 stand for."""
    if code == 0:
        return None
    if code == 1:
        return node_of(InverseSqrt2Scaling, {})
    if code == 2:
        return node_of(ConstantScaling, {"kappa": kappa})
    if code in (3, 4):
        return node_of(LearnableScaling, {"shared": code == 3})
    raise ValueError(f"unknown scalelong {code!r}; known: 0 none, 1 1/sqrt(2), 2 CS, 3 LS, 4 LS one a skip")


def check_form(net: UViT, state_dict: Mapping[str, Any]) -> None:
    """UsageError where the weights have another number of long skips, or another scaling of them."""
    theirs = len({key.split(".")[1] for key in state_dict if key.startswith("out_blocks.")})
    if theirs != net.count:
        raise UsageError(f"the weights have {theirs} long skips, the network has {net.count}: depth is {2 * theirs}")
    prefix = f"{ATTRIBUTE}."
    own, found = ([key for key in keys if key.startswith(prefix)] for keys in (net.state_dict(), state_dict))
    check_weights(NONE if net.se is None else net.se.label, own, found)

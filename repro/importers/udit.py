"""Networks of DiT (Peebles and Xie 2022) and U-DiT (Tian et al. 2024) from published arguments and state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from repro.importers.nodes import Description, node_of
from repro.models import dit, udit
from repro.models.dit import DiT
from repro.models.udit import UDiT
from repro.models.udit_layers import ReparameterisedFeedForward, refuse_fused

SHARED = {
    "input_size": "img_resolution",
    "in_channels": "in_channels",
    "num_classes": "label_dim",
    "class_dropout_prob": "class_dropout",
    "learn_sigma": "learn_sigma",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "depth": "depth",
}
"""Published argument -> ours, in both families."""
DEVELOPMENT = {
    "global_attn": "attn1",
    "local_attn": "attn2",
    "global_mlp": "mlp1",
    "local_mlp": "mlp2",
    "global_adaLN_modulation": "adaLN_modulation1",
    "local_adaLN_modulation": "adaLN_modulation2",
}
"""Names of a block's parts in the development variant of the published code -> in the released one."""
NAMED: dict[str, dict[str, Any]] = {
    **{f"DiT-{size}-{patch}": {"size": size, "patch_size": patch} for size in dit.SIZES for patch in dit.PATCHES},
    **{f"U-DiT-{size}": {"size": size} for size in "SBL"},
}


def describe(name: str, config: Mapping[str, Any]) -> Description:
    """The published network `name` as one of ours. ValueError for an unknown name or argument.

    name: `DiT` or `U_DiT` with all arguments in `config`, or a size such as `DiT-XL/2` or `U-DiT-B`, whose arguments
    `config` may change.
    """
    arguments = dict(config)
    size = name.replace("_", "-").replace("/", "-")
    if size in NAMED:
        family = size.rpartition("DiT")[0] + "DiT"
        own = _sized(family, NAMED[size])
    elif size in ("DiT", "U-DiT"):
        family = size
        own = _widths(family, arguments)
    else:
        raise ValueError(f"unknown U-DiT network {name!r}; known: DiT, U_DiT, {', '.join(NAMED)}")
    own |= {SHARED[key]: arguments.pop(key) for key in list(arguments) if key in SHARED and key != "num_heads"}
    if arguments:
        raise ValueError(f"{name} has no argument {next(iter(arguments))!r}")
    return Description(node_of(DiT if family == "DiT" else UDiT, own))


def _sized(family: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    sizes: Mapping[str, Any] = dit.SIZES if family == "DiT" else udit.SIZES
    patch = {key: value for key, value in spec.items() if key != "size"}
    return {**sizes[spec["size"]]._asdict(), **patch}


def _widths(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Heads and what only one family has, taken out of the published arguments; the rest keeps its own defaults."""
    own: dict[str, Any] = {}
    if family == "DiT":
        width, heads = arguments.pop("hidden_size", 1152), arguments.pop("num_heads", 16)
        if "patch_size" in arguments:
            own["patch_size"] = arguments.pop("patch_size")
    else:
        missing = [key for key in ("hidden_size", "num_heads") if key not in arguments]
        if missing:
            raise ValueError(f"U_DiT needs the argument {missing[0]!r}")
        width, heads = arguments.pop("hidden_size"), arguments.pop("num_heads")
        own = {"mlp_ratio": 4, **_attention(arguments), "ffn": _feed_forward(arguments)}
    if width % heads:
        raise ValueError(f"{width} channels cannot be split into {heads} heads")
    return {**own, "num_heads": heads, "head_channels": width // heads}


def _attention(arguments: dict[str, Any]) -> dict[str, Any]:
    similarity, positions = arguments.pop("attn_type", None), arguments.pop("posemb_type", None)
    if similarity not in (None, "v2"):
        raise ValueError(f"unknown attn_type {similarity!r}; known: None, 'v2'")
    if positions not in (None, "rope2d"):
        raise ValueError(f"unknown posemb_type {positions!r}; known: None, 'rope2d'")
    return {
        "down_factor": arguments.pop("down_factor", 2),
        "down_kernel": kernel_of(arguments.pop("downsampler", None)),
        "down_shortcut": bool(arguments.pop("down_shortcut", False)),
        "cosine_attention": similarity == "v2",
        "rope": positions == "rope2d",
    }


def kernel_of(downsampler: str | None) -> int | None:
    """Kernel of a published down-sampler, its last character ('dwconv5' -> 5); None stays None."""
    if downsampler is None:
        return None
    if not downsampler.startswith("dwconv") or not downsampler[-1].isdigit() or not int(downsampler[-1]) % 2:
        raise ValueError(f"unknown downsampler {downsampler!r}; known: None, 'dwconv3', 'dwconv5', 'dwconv7'")
    return int(downsampler[-1])


def _feed_forward(arguments: dict[str, Any]) -> str:
    kind, rep = arguments.pop("ffn_type", "rep"), arguments.pop("rep", 1)
    if kind not in ("basic", "rep"):
        raise ValueError(f"unknown ffn_type {kind!r}; known: 'basic', 'rep'")
    return "basic" if kind == "basic" else "reparameterised" if rep else "depthwise"


def released_key(key: str) -> str:
    """A key with the names of the released code, whichever variant it comes from."""
    parts = [DEVELOPMENT.get(part, part) for part in key.split(".")]
    if "before_attn" in parts:
        at = parts.index("before_attn")
        last = parts[at + 1 : at + 2] == ["layer"]
        parts[at : at + 1] = ["downsampler"] if last else ["downsampler", "layer"]
    return ".".join(parts)


def check_form(net: nn.Module, state: Mapping[str, Any]) -> None:
    """UsageError where the weights are of the fused form and the network is not."""
    for name, module in net.named_modules():
        if isinstance(module, ReparameterisedFeedForward):
            refuse_fused(state, f"{name}.")

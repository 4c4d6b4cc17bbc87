"""Which network a bare state dict is of: published constructor arguments from names and shapes, as far as they show.

What does not show in shapes and has one published value for each width (heads) is taken from there and said; what is
left is named as unknown and has to be given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from repro.errors import CorruptData, UsageError

Shapes = Mapping[str, tuple[int, ...]]
Recognised = tuple[str, str, dict[str, Any], tuple[str, ...]]
"""(family, published class, arguments, arguments that do not show)."""

DIT_HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
UVIT_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}


TEXT_TOKENS = 77
"""Tokens of a caption in the published text-conditional U-ViT; the position table counts them with the patches."""


def recognise(shapes: Shapes, where: str) -> Recognised:
    """The network that a state dict is of.

    Raises:
        UsageError: a network of another publication, or weights that no class of ours is known to have.
        CorruptData: the keys are those of a network, their shapes are not.
    """
    for key, reader in _READERS.items():
        if key in shapes:
            try:
                return reader(shapes)
            except (KeyError, IndexError, ZeroDivisionError, ValueError) as error:
                raise CorruptData(f"{where}: begins like a {key} network, but {error} does not fit") from None
    if "input_blocks.0.0.weight" in shapes:
        raise UsageError(
            f"{where}: ADM under the names of guided-diffusion; the same network is published as "
            "baseline-imagenet-64x64-cond-adm.pkl, which can be imported"
        )
    first = next(iter(shapes), "no tensor")
    raise UsageError(f"{where}: the state dict of no network that is known here (its first key is {first[:80]!r})")


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that the pattern's group finds in a key; 0 where it finds none."""
    found = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in found if match and len(match[1]) < 6), default=0)


def _root(value: int, what: str) -> int:
    root = math.isqrt(value)
    if root * root != value:
        raise ValueError(f"a {what} of {value} that is no square")
    return root


def _dit(shapes: Shapes) -> Recognised:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    config = {
        "input_size": _root(shapes["pos_embed"][1], "number of positions") * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": _count(shapes, r"blocks\.(\d+)\."),
        "mlp_ratio": hidden / width,
        "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,
        "class_dropout_prob": 0.1,
        "learn_sigma": shapes["final_layer.linear.weight"][0] == 2 * channels * patch * patch,
    }
    return "udit", "DiT", *_heads(config, width, DIT_HEADS)


def _heads(config: dict[str, Any], width: int, known: Mapping[int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if width in known:
        return {**config, "num_heads": known[width]}, ()
    return config, ("num_heads",)


def _udit(shapes: Shapes) -> Recognised:
    width, channels = shapes["x_embedder.proj.weight"][:2]
    stages = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
    block = "encoder_level_1.0"
    mlp = next(name for name in ("mlp1", "global_mlp") if any(key.startswith(f"{block}.{name}.") for key in shapes))
    attention = "attn1" if mlp == "mlp1" else "global_attn"
    config: dict[str, Any] = {
        "in_channels": channels,
        "hidden_size": width,
        "depth": [_count(shapes, rf"{stage}\.(\d+)\.") for stage in stages],
        "num_classes": shapes["y_embedder_1.embedding_table.weight"][0] - 1,
        "class_dropout_prob": 0.1,
        "learn_sigma": shapes["final_layer.out_proj.weight"][0] == 2 * channels,
        **_udit_mlp(shapes, f"{block}.{mlp}", width),
    }
    kernel = [
        key for key in shapes if re.match(rf"{block}\.{attention}\.(downsampler|before_attn)(\.layer)?\.weight", key)
    ]
    config["downsampler"] = f"dwconv{shapes[kernel[0]][-1]}" if kernel else None
    unknown = ["down_factor", "down_shortcut", "input_size", "posemb_type"]
    if f"{block}.{attention}.logit_scale" in shapes:
        config |= {"attn_type": "v2", "num_heads": shapes[f"{block}.{attention}.logit_scale"][0]}
    else:
        unknown.append("num_heads")
    return "udit", "U_DiT", config, tuple(unknown)


def _udit_mlp(shapes: Shapes, prefix: str, width: int) -> dict[str, Any]:
    if f"{prefix}.fc1.weight" in shapes:
        return {"ffn_type": "basic", "mlp_ratio": shapes[f"{prefix}.fc1.weight"][0] / width}
    if f"{prefix}.project_in.1.weight" in shapes:
        return {"ffn_type": "rep", "rep": 1, "mlp_ratio": shapes[f"{prefix}.project_in.1.weight"][0] / width}
    return {"ffn_type": "rep", "rep": 0, "mlp_ratio": shapes[f"{prefix}.project_in.weight"][0] / width}


def _uvit(shapes: Shapes) -> Recognised:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    conditional, shared = "label_emb.weight" in shapes, "se.layer1.weight" in shapes
    text = {"clip_dim": shapes["context_embed.weight"][1]} if "context_embed.weight" in shapes else {}
    patches = shapes["pos_embed"][1] - 1 - (TEXT_TOKENS if text else conditional)
    told = not text or (patches > 0 and math.isqrt(patches) ** 2 == patches)
    size = {"img_size": _root(patches, "number of patches") * patch} if told else {}
    blocks = _count(shapes, r"in_blocks\.(\d+)\.")
    config = {
        **size,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": 2 * blocks,  # as published: the middle block is one more
        "mlp_ratio": shapes["in_blocks.0.mlp.fc1.weight"][0] / width,
        "qkv_bias": "in_blocks.0.attn.qkv.bias" in shapes,
        "mlp_time_embed": "time_embed.0.weight" in shapes,
        "num_classes": shapes["label_emb.weight"][0] if conditional else -1,
        "conv": "final_layer.weight" in shapes,
        "skip": "out_blocks.0.skip_linear.weight" in shapes,
        "scalelong": 3 if shared else 4 if "se.0.layer1.weight" in shapes else 0,
    }
    name = "UViT (text-conditional variant)" if text else "UViT"
    config, unknown = _heads(config | text, width, UVIT_HEADS)
    return "scalelong", name, config, unknown if told else (*unknown, "img_size", "num_clip_token")


def _edm2(shapes: Shapes) -> Recognised:
    """`Precond`; `UNet` where the keys have no `unet.`."""
    prefix = "unet." if "unet.out_gain" in shapes else ""
    levels = sorted(
        {int(m[1]) for key in shapes if (m := re.match(rf"{prefix}enc\.(\d{{1,5}})x\1_", key))}, reverse=True
    )
    block = f"{prefix}enc.{{0}}x{{0}}_block{{1}}.conv_res0.weight"
    widths = [shapes[block.format(level, 0)][0] for level in levels]
    names = [re.match(rf"{prefix}(?:enc|dec)\.(\d{{1,5}})x\1_block\d+\.attn_qkv", key) for key in shapes]
    config = {
        "img_resolution": levels[0],
        "img_channels": shapes[f"{prefix}out_conv.weight"][0],
        "label_dim": shapes[f"{prefix}emb_label.weight"][1] if f"{prefix}emb_label.weight" in shapes else 0,
        "model_channels": widths[0],
        "channel_mult": [_whole(width, widths[0]) for width in widths],
        "channel_mult_noise": _whole(shapes[f"{prefix}emb_fourier.freqs"][0], widths[0]),
        "channel_mult_emb": _whole(shapes[f"{prefix}emb_noise.weight"][0], widths[0]),
        "num_blocks": _count(shapes, rf"{prefix}enc\.{levels[0]}x{levels[0]}_block(\d+)\."),
        "attn_resolutions": sorted({int(match[1]) for match in names if match}),
    }
    if prefix:
        config["logvar_channels"] = shapes["logvar_fourier.freqs"][0]
    unknown = ("channels_per_head",) if any(names) else ()
    return "edm2", "Precond" if prefix else "UNet", config, unknown


def _edm(shapes: Shapes) -> Recognised:
    """EDM's networks are published as objects; of a bare state dict neither class nor arguments show."""
    return "edm", "network of EDM", {}, ("its class (--as EDMPrecond)", "and arguments")


def _whole(width: int, unit: int) -> int:
    if width % unit:
        raise ValueError(f"a width of {width} over {unit}")
    return width // unit


_READERS = {
    "blocks.0.attn.qkv.weight": _dit,
    "encoder_level_1.0.attn1.to_qkv.weight": _udit,
    "encoder_level_1.0.global_attn.to_qkv.weight": _udit,
    "in_blocks.0.attn.qkv.weight": _uvit,
    "unet.out_gain": _edm2,
    "out_gain": _edm2,
    "model.map_layer0.weight": _edm,
    "map_layer0.weight": _edm,
}
"""A key that only networks of one class have -> how to read their shapes."""

"""Golden cases of DiT and U-DiT: parts, networks and guided forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Runner
from torch import Tensor, nn

from repro import importers
from repro.diffusion.discrete_samplers import guided_forward
from repro.importers.udit import kernel_of
from repro.models import dit, dit_layers, udit, udit_layers

KINDS = {"basic": "basic", "rep0": "depthwise", "rep1": "reparameterised"}


def load(case: Case, module: nn.Module) -> nn.Module:
    """The case's weights, whose keys, order and number must be the module's; in the case's mode."""
    state = case.state()
    assert list(module.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in module.parameters()) == case.meta["num_params"]
    module.load_state_dict(state)
    return module.train(case.meta["mode"] == "train")


def infer(module: nn.Module, case: Case) -> nn.Module:
    """The form that the published code ran: fused where it was switched to evaluation mode."""
    return udit.fused(module) if case.meta["mode"] == "eval" else module


def run_parts(make: Callable[[dict[str, Any]], nn.Module]) -> Runner:
    """A runner for a module that is built by `make` from the published arguments."""

    @torch.no_grad()
    def run(case: Case) -> None:
        module = load(case, make(case.config))
        case.check("out", infer(module, case)(*(case.input(name) for name in case.meta["args"])))

    return run


def attention(config: dict[str, Any]) -> nn.Module:
    assert config.get("bias", True)
    kernel, shortcut = kernel_of(config["downsampler"]), bool(config["down_shortcut"])
    cosine, rope = config["attn_type"] == "v2", config["posemb_type"] == "rope2d"
    return udit_layers.TokenAttention(
        config["dim"], config["num_heads"], config["down_factor"], kernel, shortcut, cosine, rope
    )


def block(config: dict[str, Any]) -> nn.Module:
    kind: Any = KINDS["basic" if config["ffn_type"] == "basic" else f"rep{config['rep']}"]
    options = udit.BlockOptions(
        config["num_heads"],
        config["mlp_ratio"],
        kernel_of(config["downsampler"]),
        bool(config["down_shortcut"]),
        config["attn_type"] == "v2",
        config["posemb_type"] == "rope2d",
        kind,
    )
    return udit.UDiTBlock(config["hidden_size"], config["down_factor"], options)


def mlp(config: dict[str, Any]) -> nn.Module:
    """Built alone, the published class has the exact GELU; blocks ask it for the tanh form."""
    return udit_layers.BasicFeedForward(config["in_features"], config["hidden_features"], "none")


@torch.no_grad()
def run_down_sampler(case: Case) -> None:
    config = case.config
    module = udit_layers.TokenDownSampler(
        config["in_channels"], kernel_of(config["downsampler"]) or 0, bool(config["down_shortcut"])
    )
    load(case, module)
    case.check("out", udit_layers.group_tokens(module(case.input("x")), config["down_factor"]))


@torch.no_grad()
def run_feed_forward(case: Case) -> None:
    config = case.config
    kind: Any = KINDS[f"rep{config['rep']}"]
    module = udit_layers.feed_forward(kind, config["dim"], int(config["dim"] * config["ffn_expansion_factor"]))
    load(case, module)
    if case.meta["call"] == "both_modes":
        case.check("train", module(case.input("x")))
        before = {key: value.clone() for key, value in module.state_dict().items()}
        case.check("eval", udit.fused(module)(case.input("x")))
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
        return
    case.check("out", infer(module, case)(case.input("x")))


@torch.no_grad()
def run_label(case: Case) -> None:
    config = case.config
    module = dit_layers.LabelEmbedder(config["num_classes"], config["hidden_size"], config["dropout_prob"])
    load(case, module)
    case.check("plain", module(case.input("y")))
    case.check("dropped", module(case.input("y"), case.input("force_drop_ids")))


@torch.no_grad()
def run_network(case: Case) -> None:
    state = case.state()
    net = importers.build("udit", case.meta["name"], case.config, state)
    assert list(net.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    net.train(case.meta["mode"] == "train")
    arguments = [case.input(name) for name in ("x", "t", "y")]
    if case.meta.get("call") == "forward_with_cfg":
        case.check("out", guided_forward(infer(net, case), *arguments, case.meta["cfg_scale"]))
        return
    unfused, expected = net(*arguments), infer(net, case)(*arguments)
    torch.testing.assert_close(unfused, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    case.check("out", expected)


def run_rotation_table(case: Case) -> None:
    side = round(case.config["end"] ** 0.5)
    angles = udit_layers.rotation_angles(case.config["dim"], side, side)
    case.check("real", angles.cos())
    case.check("imag", angles.sin())


def run_rotation(case: Case) -> None:
    """Heads come after the tokens in the published order, before them in ours."""
    side = round(case.config["end"] ** 0.5)
    angles = udit_layers.rotation_angles(case.config["dim"], side, side)
    for name in "qk":
        turned = udit_layers.rotate(case.input(name).transpose(1, 2), angles.cos(), angles.sin())
        case.check(name, turned.transpose(1, 2))


def run_positions(case: Case) -> None:
    case.check("pos_embed", dit.positions(case.config["embed_dim"], case.config["grid_size"]))


def run_time_features(case: Case) -> None:
    features: Tensor = dit_layers.timestep_features(case.input("t"), case.config["dim"])
    case.check("emb", features)


NETWORKS = [
    "U_DiT",
    "DiT",
    *(name.format(s, p) for s in dit.SIZES for p in dit.PATCHES for name in ("DiT-{}/{}", "DiT_{}_{}")),
    *(name.format(s) for s in "SBL" for name in ("U-DiT-{}", "U_DiT_{}")),
]
RUNNERS: dict[tuple[str, str], Runner] = {
    **{("network", name): run_network for name in NETWORKS},
    ("network", "DownSample_Attn"): run_parts(attention),
    ("network", "U_DiTBlock"): run_parts(block),
    ("network", "DiT.DiTBlock"): run_parts(
        lambda c: dit.DiTBlock(c["hidden_size"], c["num_heads"], c.get("mlp_ratio", 4.0))
    ),
    ("network", "DiT.FinalLayer"): run_parts(
        lambda c: dit.FinalLayer(c["hidden_size"], c["patch_size"], c["out_channels"])
    ),
    ("network", "FinalLayer"): run_parts(lambda c: udit.FinalLayer(c["hidden_size"], c["out_channels"])),
    ("network", "Downsample"): run_parts(lambda c: udit.StageDown(c["n_feat"])),
    ("network", "Upsample"): run_parts(lambda c: udit.StageUp(c["n_feat"])),
    ("network", "TimestepEmbedder"): run_parts(lambda c: dit_layers.TimestepEmbedder(c["hidden_size"])),
    ("network", "Mlp"): run_parts(mlp),
    ("network", "DownSampler"): run_down_sampler,
    ("network", "FeedForward"): run_feed_forward,
    ("network", "LabelEmbedder"): run_label,
    ("network", "apply_rotary_emb"): run_rotation,
    ("network", "precompute_freqs_cis_2d"): run_rotation_table,
    ("network", "get_2d_sincos_pos_embed"): run_positions,
    ("network", "timestep_embedding"): run_time_features,
}

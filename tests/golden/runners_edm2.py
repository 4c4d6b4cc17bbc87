"""Golden cases of EDM2: primitives, blocks, networks, loss, training, post-hoc EMA and guided sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import runners_network
import torch
from harness import Case, Runner
from torch import Tensor, nn

from repro import importers
from repro.models import edm2_layers
from repro.models.edm2 import Block, BlockOptions
from repro.models.edm2_layers import MPConv, MPFourier

PRIMITIVES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "normalize": (edm2_layers.normalize, "x"),
    "resample": (edm2_layers.resample, "x"),
    "mp_silu": (edm2_layers.mp_silu, "x"),
    "mp_sum": (edm2_layers.mp_sum, "ab"),
    "mp_cat": (edm2_layers.mp_cat, "ab"),
}


def settings(case: Case) -> dict[str, Any]:
    """What was done, beside the arguments: the keys of `config` that start with an underscore, without it."""
    return {key[1:]: value for key, value in case.meta["config"].items() if key.startswith("_")}


def load(case: Case, module: nn.Module) -> None:
    """The case's weights, whose keys, order and number must be the module's."""
    state = case.state()
    assert list(module.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in module.parameters()) == case.meta["num_params"]
    module.load_state_dict(state)


def network(case: Case, name: str, config: dict[str, Any]) -> nn.Module:
    """A network built by the importer; its keys, their order and its size are those published."""
    state = case.state()
    net = importers.build("edm2", name, config, state)
    assert list(net.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    return net


def run_primitive(case: Case) -> None:
    function, inputs = PRIMITIVES[case.meta["name"]]
    case.check("y", function(*(case.input(name) for name in inputs), **case.config))


def run_fourier(case: Case) -> None:
    module = MPFourier(**case.config)
    load(case, module)
    case.check("y", module(case.input("x")))


def run_conv(case: Case) -> None:
    done = settings(case)
    config = case.config
    kernel = config.pop("kernel")
    assert len(set(kernel)) <= 1
    module = MPConv(**config, kernel=kernel[0] if kernel else 0)
    load(case, module)
    if done["mode"] == "eval":
        before = module.weight.clone()
        case.check("y", module.eval()(case.input("x"), done["gain"]))
        assert torch.equal(module.weight, before)
        return
    x, gain = case.input("x").requires_grad_(), torch.tensor(float(done["gain"]), requires_grad=True)
    y = module.train()(x, gain)
    case.check("y", y)
    case.check("weight_after", module.weight.clone())
    torch.autograd.backward((y * case.input("dy")).sum())
    case.check("grad_weight", _gradient(module.weight))
    case.check("grad_x", _gradient(x))
    case.check("grad_gain", _gradient(gain).reshape(1))
    case.check("y2", module(x, gain))
    case.check("weight_after2", module.weight)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def make_block(config: dict[str, Any]) -> Block:
    """A block from the published arguments."""
    arguments = dict(config)
    own = {"in_channels": arguments.pop("in_channels"), "out_channels": arguments.pop("out_channels")}
    own["decoder"] = arguments.pop("flavor", "enc") == "dec"
    own["mode"] = arguments.pop("resample_mode", "keep")
    own["attention"] = arguments.pop("attention", False)
    return Block(**own, options=BlockOptions(**arguments))


def run_block(case: Case) -> None:
    done = settings(case)
    block = make_block(case.config)
    load(case, block)
    x, emb = case.input("x").requires_grad_(), case.input("emb").requires_grad_()
    y = block.train(done.get("mode") == "train")(x, emb)
    case.check("y", y)
    if done.get("mode") != "train":
        return
    torch.autograd.backward((y * case.input("dy")).sum())
    case.check("grad_x", _gradient(x))
    case.check("grad_emb", _gradient(emb))
    parameters = dict(block.named_parameters())
    for name in sorted(case.outputs - {"y", "grad_x", "grad_emb"}):
        if name == "grad_emb_gain":
            case.check(name, _gradient(parameters["emb_gain"]).reshape(1))
        elif name.startswith("grad_"):
            case.check(name, _gradient(parameters[name.removeprefix("grad_")]))
        elif name.startswith("weight_after_"):
            case.check(name, parameters[f"{name.removeprefix('weight_after_')}.weight"])


@torch.no_grad()
def run_unet(case: Case) -> None:
    net = network(case, "UNet", case.config)
    case.check("F_x", net(case.input("x"), case.input("noise_labels"), case.optional("class_labels")))


@torch.no_grad()
def run_precond(case: Case) -> None:
    net = network(case, "Precond", case.config)
    denoised, logvar = net(case.input("x"), case.input("sigma"), case.optional("class_labels"), return_logvar=True)
    case.check("D_x", denoised)
    case.check("logvar", logvar)
    again = net(case.input("x"), case.input("sigma"), case.optional("class_labels"))
    assert torch.equal(again, denoised)


@torch.no_grad()
def run_adm(case: Case) -> None:
    """Configurations A and B are EDM's ADM network with 4 image channels; other cases of the name are EDM's own."""
    if "D_x" not in case.outputs:
        runners_network.run_precond(case)
        return
    case.check("D_x", case.network()(case.input("x"), case.input("sigma"), case.optional("class_labels")))


def run_param_counts(case: Case) -> None:
    from repro.diffusion.edm2 import EDM2Precond
    from repro.models.edm2 import EDM2UNet

    counts = []
    for config in case.config["models"]:
        with torch.device("meta"):
            net = EDM2Precond(EDM2UNet(**config))
        counts.append(sum(p.numel() for p in net.parameters()))
    case.check("num_params", torch.tensor(counts))


RUNNERS: dict[tuple[str, str], Runner] = {
    **{("network", name): run_primitive for name in PRIMITIVES},
    ("network", "MPFourier"): run_fourier,
    ("network", "MPConv"): run_conv,
    ("network", "Block"): run_block,
    ("network", "UNet"): run_unet,
    ("network", "param_counts"): run_param_counts,
    ("precond", "Precond"): run_precond,
    ("precond", "EDMPrecond"): run_adm,
}

"""Scaling of long skips: coefficients, one module for all networks, bit-equal without it, weights that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro import importers
from repro.diffusion.vp_sde import VPDenoiser
from repro.errors import UsageError
from repro.importers import scalelong
from repro.models.adm import DhariwalUNet
from repro.models.ddpm import DDPMUNet
from repro.models.dit import DiT
from repro.models.edm2 import EDM2UNet
from repro.models.skips import ConstantScaling, InverseSqrt2Scaling, LearnableScaling, SkipScaling
from repro.models.song import SongUNet
from repro.models.u_shape import u_shape
from repro.models.udit import UDiT
from repro.models.uvit import UViT

SMALL: dict[str, Any] = {"model_channels": 8, "num_blocks": 1, "channel_mult": (1, 2), "attn_resolutions": (8,)}
UNET: dict[str, Any] = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, **SMALL}
NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "U-ViT": (lambda **k: UViT(16, depth=6, num_heads=2, head_channels=8, **k), 3),
    "DDPM": (lambda **k: DDPMUNet(16, dropout=0.0, **SMALL, **k), 4),
    "DDPM++": (lambda **k: SongUNet(**UNET, dropout=0.0, **k), 4),
    "NCSN++": (lambda **k: SongUNet(**UNET, dropout=0.0, encoder_type="residual", embedding_type="fourier", **k), 4),
    "ADM": (lambda **k: DhariwalUNet(**UNET, dropout=0.0, **k), 4),
    "EDM2": (lambda **k: EDM2UNet(16, 3, **SMALL, **k), 4),
    "U-DiT": (lambda **k: UDiT(16, 3, 0, [1] * 5, 2, 8, learn_sigma=False, class_dropout=0, **k), 2),
}
SCALINGS: dict[str, SkipScaling] = {
    "sqrt2": InverseSqrt2Scaling(),
    "cs": ConstantScaling(0.5),
    "ls": LearnableScaling(),
    "ls per skip": LearnableScaling(shared=False),
}


def make(name: str, scaling: SkipScaling | None = None, **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    net = NETWORKS[name][0](**({} if scaling is None else {"skip_scaling": scaling}), **changes)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # layers that begin at zero would hide everything
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def inputs(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, 16, 16, generator=generator), torch.tensor([3.0, 500.0])


def test_coefficients_begin_at_the_outermost_skip() -> None:
    assert ConstantScaling(0.5).over_tokens(4, 9).constants() == [1.0, 0.5, 0.25, 0.125]
    assert InverseSqrt2Scaling().over_channels([8, 16]).constants() == [math.sqrt(0.5)] * 2
    x = torch.randn(1, 9, 4)
    skips = ConstantScaling(0.7).over_tokens(3, 9)
    assert skips(x, 1) is x and torch.equal(skips(x, 3), x * 0.7**2)


@pytest.mark.parametrize("kappa", [0, -0.5, 1.01, math.nan])
def test_kappa_outside_of_its_range(kappa: float) -> None:
    with pytest.raises(UsageError, match="ConstantScaling.kappa must be above 0 and at most 1, not"):
        ConstantScaling(kappa)


@pytest.mark.parametrize("length, cost", [(257, 8_497), (258, 8_530), (334, 13_714)])
def test_cost_of_a_gate(length: int, cost: int) -> None:
    gates = LearnableScaling().over_tokens(6, length)
    assert sum(p.numel() for p in gates.parameters()) == cost
    each = LearnableScaling(shared=False).over_tokens(6, length)
    assert sum(p.numel() for p in each.parameters()) == 6 * cost
    assert list(each.state_dict())[0] == "0.layer1.weight" and list(gates.state_dict())[0] == "layer1.weight"


def test_gates_of_maps_and_tokens_by_hand() -> None:
    torch.manual_seed(0)
    gates = LearnableScaling(shared=False, reduction=4).over_channels([8, 16])
    x = torch.randn(2, 16, 3, 3)
    layers = gates.get_submodule("0")  # number 0 is the innermost skip
    hidden = (x.mean((2, 3)) @ layers.layer1.weight.T + layers.layer1.bias).relu()
    g = torch.sigmoid(hidden @ layers.layer2.weight.T + layers.layer2.bias)
    torch.testing.assert_close(gates(x, 2), x * g[:, :, None, None])
    assert layers.layer1.weight.shape == (4, 16) and gates.get_submodule("1").layer1.weight.shape == (2, 8)
    shared = LearnableScaling().over_channels([8, 8, 32])
    assert {key.split(".")[0] for key in shared.state_dict()} == {"8", "32"}
    assert shared.get_submodule("8").layer1.weight.shape == (1, 8), "a reduction of more than the width leaves one"


def test_fresh_gates_lie_around_one_half() -> None:
    torch.manual_seed(0)
    gates = LearnableScaling().over_tokens(3, 257)
    bound = 1 / math.sqrt(257)
    weight = gates.state_dict()["layer1.weight"]
    assert 0.95 * bound < float(weight.abs().max()) <= bound
    assert 0.95 / 4 < float(gates.state_dict()["layer2.bias"].abs().max()) <= 1 / 4
    with torch.no_grad():
        g = gates.coefficients(torch.randn(4, 257, 8), 1)
    assert isinstance(g, Tensor) and g.shape == (4, 257) and abs(float(g.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_without_scaling_nothing_changes(name: str) -> None:
    """Same keys, same numbers, to the bit; other weights are drawn as before when gates are added behind them."""
    plain, none, one = make(name), make(name, skip_scaling=None), make(name, ConstantScaling(1.0))
    expected = plain(*inputs())
    assert list(plain.state_dict()) == list(none.state_dict()) == list(one.state_dict())
    assert torch.equal(none(*inputs()), expected) and torch.equal(one(*inputs()), expected)
    torch.manual_seed(5)
    first = NETWORKS[name][0]().state_dict()
    torch.manual_seed(5)
    second = NETWORKS[name][0](skip_scaling=LearnableScaling()).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert {key.split(".")[0] for key in second.keys() - first.keys()} == {"se"}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_skip_is_scaled_once(name: str, scaling: str) -> None:
    """Skip i is the i-th tensor that the encoder stores; skips are used from the innermost outwards."""
    net, count = make(name, SCALINGS[scaling]), NETWORKS[name][1]
    stored: list[Tensor] = []
    used: list[tuple[int, Tensor]] = []
    for part in u_shape(net).encoder:
        part.modules[-1].register_forward_hook(lambda module, args, output: stored.append(output))
    skips: Any = net.se
    skips.register_forward_hook(lambda module, args, output: used.append((args[1], args[0])))
    output = net(*inputs())
    assert skips.count == count == len(u_shape(net).decoder)
    assert [number for number, _ in used] == list(range(count, 0, -1))
    if name != "NCSN++":  # there, what is stored is changed after the block
        assert all(torch.equal(skip, stored[number - 1]) for number, skip in used)
    assert not torch.equal(output, make(name)(*inputs()))


def test_scaling_a_skip_is_scaling_its_columns() -> None:
    """The linear layer that joins takes the stream first and the skip second."""
    scaled, plain = make("U-ViT", ConstantScaling(0.5)), make("U-ViT")
    with torch.no_grad():
        for block, factor in zip(plain.out_blocks, (0.25, 0.5, 1.0), strict=True):
            block.skip_linear.weight[:, 16:] *= factor
    torch.testing.assert_close(scaled(*inputs()), plain(*inputs()))


def test_networks_without_long_skips() -> None:
    with pytest.raises(UsageError, match=r"DiT has no long skips, to which constant scaling \(CS, kappa 0.5\)"):
        DiT(16, depth=1, num_heads=2, head_channels=8, skip_scaling=ConstantScaling())
    with pytest.raises(UsageError, match="UViT has no long skips here, to which 1/sqrt"):
        VPDenoiser(UViT(16, long_skips=False, skip_scaling=InverseSqrt2Scaling()))
    with pytest.raises(UsageError, match="UViT has no long skips here, to which learnable"):
        VPDenoiser(UViT(16, depth=1, skip_scaling=LearnableScaling()))
    with pytest.raises(UsageError, match="needs as many tokens, not 5"):
        UViT(4, skip_scaling=LearnableScaling())
    with pytest.raises(UsageError, match="reduction must be 1 or more"):
        LearnableScaling(reduction=0)
    with pytest.raises(UsageError, match="one of sigmoid, hardsigmoid, tanh, not 'relu'"):
        LearnableScaling(gate="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [1, 2, 3, 4])
@pytest.mark.parametrize("form", [{"skip": False, "depth": 3}, {"depth": 1}])
def test_published_networks_may_have_a_scaling_that_scales_nothing(code: int, form: dict[str, Any]) -> None:
    config = {"img_size": 16, "patch_size": 2, "embed_dim": 16, "num_heads": 2, **form}
    given = scalelong.describe("UViT", {**config, "scalelong": code}).build()
    plain = scalelong.describe("UViT", config).build()
    left_over = plain.load_state_dict(given.state_dict(), strict=False).unexpected_keys
    assert all(key.startswith("se.") for key in left_over)
    assert bool(left_over) == (code == 3 or (code == 4 and form["depth"] > 1))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(given(x, torch.tensor([0.5])), plain(x, torch.tensor([0.5])))


LS, EACH, CS = LearnableScaling(), LearnableScaling(shared=False), ConstantScaling()


@pytest.mark.parametrize("name", ["U-ViT", "DDPM++"])
def test_weights_of_another_scaling_are_refused(name: str) -> None:
    learned = make(name, LS).state_dict()
    with pytest.raises(
        UsageError, match=r"have learnable scaling \(LS\).*, the network has constant scaling \(CS, kap"
    ):
        make(name, CS).load_state_dict(learned)
    with pytest.raises(UsageError, match=r"have no learnable scaling, the network has learnable scaling \(LS\)"):
        make(name, LS).load_state_dict(make(name, CS).state_dict())
    make(name, ConstantScaling(0.7)).load_state_dict(make(name).state_dict())


def config(code: int, depth: int = 6) -> dict[str, Any]:
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 16, "num_heads": 2, "depth": depth}
    return {**sizes, "scalelong": code}


def test_an_imported_checkpoint_names_what_does_not_fit() -> None:
    state = make("U-ViT", LS).state_dict()
    importers.build("scalelong", "UViT", config(3), state)
    with pytest.raises(UsageError, match=r"have learnable scaling \(LS\), the network has constant scaling \(CS"):
        importers.build("scalelong", "UViT", config(2), state)
    with pytest.raises(UsageError, match=r"have learnable scaling \(LS\), the network has no skip scaling"):
        importers.build("scalelong", "UViT", config(0), state)
    with pytest.raises(UsageError, match=r"have learnable scaling \(LS\), the network has .*, a gate a skip"):
        importers.build("scalelong", "UViT", config(4), state)
    with pytest.raises(UsageError, match="the weights have 3 long skips, the network has 4: depth is 6"):
        importers.build("scalelong", "UViT", config(3, depth=8), state)
    short = {key: value for key, value in make("U-ViT", EACH).state_dict().items() if not key.startswith("se.2.")}
    with pytest.raises(UsageError, match="gates of 2 skips, the network has 3"):
        importers.build("scalelong", "UViT", config(4), short)
    with pytest.raises(ValueError, match="unknown scalelong 5"):
        importers.build("scalelong", "UViT", config(5), state)
    with pytest.raises(ValueError, match="UViT has no argument 'drop_rate'"):
        importers.build("scalelong", "UViT", {**config(3), "drop_rate": 0.1}, state)


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_learn(name: str) -> None:
    net = make(name, LearnableScaling(shared=False)).train()
    torch.autograd.backward(net(*inputs()).square().sum())
    gates: Any = net.se
    # A hidden unit of one may be dead; the biases behind it always learn.
    assert all(p.grad is not None and p.grad.any() for n, p in gates.named_parameters() if "layer2.bias" in n)

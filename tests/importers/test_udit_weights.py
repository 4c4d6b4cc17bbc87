"""Published DiT and U-DiT networks from constructor arguments and state dicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro import importers
from repro.errors import UsageError
from repro.importers import udit as importer
from repro.models import udit
from repro.models.dit import DiT
from repro.models.udit import UDiT

CONFIG: dict[str, Any] = {
    "input_size": 16,
    "hidden_size": 8,
    "num_heads": 2,
    "depth": [1, 1, 1, 1, 1],
    "mlp_ratio": 2,
    "num_classes": 5,
    "posemb_type": "rope2d",
    "attn_type": "v2",
    "downsampler": "dwconv5",
    "down_shortcut": 1,
}


def state(**changes: Any) -> dict[str, Tensor]:
    """Weights of the network of CONFIG, none of them zero."""
    torch.manual_seed(0)
    settings = {"img_resolution": 16, "label_dim": 5, "depth": [1] * 5, "num_heads": 2, "head_channels": 4}
    net = UDiT(**{**settings, **changes})
    return {key: torch.randn_like(value) for key, value in net.state_dict().items()}


def output(net: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=generator)
    with torch.no_grad():
        return net(x, torch.tensor([500]), torch.tensor([5]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_average_is_taken_where_there_is_one(wrapped: bool) -> None:
    given = state()
    half = {key: value / 2 for key, value in given.items()}
    net = importers.build("udit", "U_DiT", CONFIG, {"model": half, "ema": given} if wrapped else given)
    assert not net.training
    assert all(torch.equal(value, given[key]) for key, value in net.state_dict().items())


def test_positions_of_a_published_dit_are_kept_whatever_they_are() -> None:
    config = {"input_size": 8, "patch_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 5}
    given = {
        key: torch.randn_like(value) for key, value in importer.describe("DiT", config).build().state_dict().items()
    }
    net = importers.build("udit", "DiT", config, given)
    assert torch.equal(net.state_dict()["pos_embed"], given["pos_embed"])


def test_names_of_the_development_variant() -> None:
    given = state()
    names = {released: development for development, released in importer.DEVELOPMENT.items()}

    def renamed(key: str, direct: bool) -> str:
        parts = [names.get(part, part) for part in key.split(".")]
        if "downsampler" in parts:
            at = parts.index("downsampler")
            parts[at : at + 2] = ["before_attn"] if direct else ["before_attn", "layer"]
        return ".".join(parts)

    for direct in (False, True):
        development = {renamed(key, direct): value for key, value in given.items()}
        assert "latent.0.global_attn.to_qkv.weight" in development
        net = importers.build("udit", "U_DiT", CONFIG, development)
        assert all(torch.equal(value, given[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["U-DiT-S", "U_DiT_S"])
def test_named_networks_heed_their_arguments(name: str) -> None:
    """The published builders ignore all of them."""
    with torch.device("meta"):
        given = UDiT(label_dim=7).state_dict()
    with torch.device("meta"):
        net = importers.build("udit", name, {"num_classes": 7, "input_size": 64}, given)
    assert isinstance(net, UDiT) and (net.label_dim, net.img_resolution) == (7, 64)


@pytest.mark.parametrize("name", ["DiT-B/8", "DiT-B-8", "DiT"])
def test_networks_of_dit(name: str) -> None:
    widths = {"hidden_size": 768, "num_heads": 12, "patch_size": 8, "depth": 12} if name == "DiT" else {}
    with torch.device("meta"):
        given = DiT(img_resolution=16, depth=12, num_heads=12, head_channels=64, patch_size=8).state_dict()
        net = importers.build("udit", name, {"input_size": 16, **widths}, given)
    assert isinstance(net, DiT) and net.patch_size == 8 and len(net.blocks) == 12


@pytest.mark.parametrize(
    "published, ours",
    [
        ({"attn_type": None}, {"cosine_attention": False}),
        ({"posemb_type": None}, {"rope": False}),
        ({"downsampler": None}, {"down_kernel": None}),
        ({"downsampler": "dwconv3"}, {"down_kernel": 3}),
        ({"down_shortcut": False}, {"down_shortcut": False}),
        ({"down_factor": 1}, {"down_factor": 1}),
        ({"down_factor": [2, 2, 1, 2, 2]}, {"down_factor": [2, 2, 1, 2, 2]}),
        ({"ffn_type": "basic"}, {"ffn": "basic"}),
        ({"ffn_type": "basic", "rep": 0, "mlp_ratio": 4}, {"ffn": "basic", "mlp_ratio": 4}),
        ({"rep": 0}, {"ffn": "depthwise"}),
        ({"learn_sigma": False, "in_channels": 4}, {"learn_sigma": False}),
        ({"class_dropout_prob": 0.0}, {"class_dropout": 0.0}),
    ],
)
def test_every_argument_reaches_the_network(published: dict[str, Any], ours: dict[str, Any]) -> None:
    given = state(**ours)
    net = importers.build("udit", "U_DiT", {**CONFIG, **published}, given)
    torch.manual_seed(0)
    settings = {"img_resolution": 16, "label_dim": 5, "depth": [1] * 5, "num_heads": 2, "head_channels": 4}
    expected = UDiT(**{**settings, **ours}).eval()
    expected.load_state_dict(given)
    label = torch.tensor([4])
    x = torch.randn(1, 4, 16, 16)
    assert torch.equal(net(x, torch.tensor([9]), label), expected(x, torch.tensor([9]), label))


def test_a_fused_checkpoint_is_refused_with_the_reason() -> None:
    fused = udit.fused(importers.build("udit", "U_DiT", CONFIG, state()))
    with pytest.raises(UsageError, match=r"encoder_level_1.0.mlp1.project_in.weight: it is of the fused form"):
        importers.build("udit", "U_DiT", CONFIG, fused.state_dict())
    net = importers.build("udit", "U_DiT", {**CONFIG, "rep": 0}, fused.state_dict())
    torch.testing.assert_close(output(net), output(fused))


def test_building_leaves_the_generator_alone() -> None:
    given = state()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    importers.build("udit", "U_DiT", CONFIG, given)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("UNet", {}, "unknown U-DiT network 'UNet'; known: DiT, U_DiT, DiT-S-2"),
        ("U_DiT", {"window": 8}, "U_DiT has no argument 'window'"),
        ("U_DiT", {"num_heads": None}, "U_DiT needs the argument 'num_heads'"),
        ("U_DiT", {"num_heads": 3}, "8 channels cannot be split into 3 heads"),
        ("U_DiT", {"attn_type": "v3"}, "unknown attn_type 'v3'"),
        ("U_DiT", {"posemb_type": "ape"}, "unknown posemb_type 'ape'"),
        ("U_DiT", {"downsampler": "conv4"}, "unknown downsampler 'conv4'"),
        ("U_DiT", {"ffn_type": "glu"}, "unknown ffn_type 'glu'"),
        ("U_DiT", {"num_classes": 6}, r"\(6, 8\) in the checkpoint, \(7, 8\) in the network"),
        ("U_DiT", {"depth": [2, 1, 1, 1, 1]}, "lacks 'encoder_level_1.1.attn1.logit_scale'"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in {**CONFIG, **change}.items() if key not in change or change[key] is not None}
    with pytest.raises(ValueError, match=message):
        importers.build("udit", name, config, state())

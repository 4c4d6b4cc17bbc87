"""U-ViT: published sizes, order of the tokens, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import repro.experiment  # noqa: F401  makes the configurables known
from repro.config import Composition
from repro.errors import UsageError
from repro.models.ddpm import DDPMUNet
from repro.models.skips import LearnableScaling
from repro.models.uvit import UViT

# gin part: (side, channels, classes and null class or text) -> parameters without, with shared, with separate gates.
SIZES: dict[str, tuple[dict[str, Any], tuple[int, int, int | None]]] = {
    "uvit-s2": ({"img_resolution": 32}, (44_255_328, 44_263_825, 44_306_310)),
    "uvit-s4": ({"img_resolution": 64}, (44_292_228, 44_300_725, 44_343_210)),
    "uvit-m4": ({"img_resolution": 64, "label_dim": 1000}, (130_940_292, 130_948_822, 131_008_532)),
    "uvit-l4": ({"img_resolution": 64, "label_dim": 1000}, (286_827_652, 286_836_182, 286_912_952)),
    "uvit-l2": ({"in_channels": 4, "label_dim": 1000, "null_class": True}, (286_763_172, 286_771_702, 286_848_472)),
    "uvit-h2": ({"in_channels": 4, "label_dim": 1000, "null_class": True}, (500_832_016, 500_840_546, 500_951_436)),
    "uvit-l4 latent": (
        {"img_resolution": 64, "in_channels": 4, "label_dim": 1000, "null_class": True},
        (286_861_524, 286_870_054, 286_946_824),
    ),
    "uvit-h4": (
        {"img_resolution": 64, "in_channels": 4, "label_dim": 1000, "null_class": True},
        (500_942_656, 500_951_186, 501_062_076),
    ),
    "uvit-s2-deep": ({"img_resolution": 32}, (57_908_320, 57_916_817, 57_976_296)),
    "uvit-s2 text": ({"in_channels": 4, "context_tokens": 77}, (44_692_644, 44_692_644 + 13_714, None)),
    "uvit-s2-deep text": ({"in_channels": 4, "context_tokens": 77}, (58_345_636, 58_345_636 + 13_714, None)),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_the_published_sizes(name: str) -> None:
    arguments, expected = SIZES[name]
    sizes = Composition([f"scalelong/parts/{name.split()[0]}.gin"]).root("UViT").args
    for scaling, count in zip((None, LearnableScaling(), LearnableScaling(shared=False)), expected, strict=True):
        with torch.device("meta"):
            net = UViT(**{**sizes, **arguments, "skip_scaling": scaling})
        assert count is None or sum(p.numel() for p in net.parameters()) == count


def test_the_stand_in_for_the_unet() -> None:
    with torch.device("meta"):
        net = DDPMUNet()
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    assert len([name for name in net.dec if "block" in name]) == 12


def test_tokens_stand_in_the_published_order() -> None:
    """Label, time, patches; or time, text, patches: each position has its own row of the position table."""
    torch.manual_seed(0)
    labelled = UViT(4, 1, 2, 2, 2, 4, label_dim=3)
    text = UViT(4, 1, 2, 2, 2, 4, context_tokens=2, context_dim=5)
    tau = torch.tensor([7.0])
    first, second = labelled._extra_tokens(tau, torch.tensor([1]))
    assert torch.equal(first[0, 0], labelled.label_emb.weight[1])
    assert second.shape == (1, 1, 8) and second[0, 0, 0] == torch.cos(tau)[0]
    time, words = text._extra_tokens(tau, torch.zeros(1, 2, 5))
    assert torch.equal(time, second) and words.shape == (1, 2, 8)
    assert labelled.pos_embed.shape == (1, 6, 8) and text.pos_embed.shape == (1, 7, 8)


def test_bad_input() -> None:
    net = UViT(4, 1, 2, 2, 2, 4, label_dim=3)
    x, tau = torch.zeros(1, 1, 4, 4), torch.zeros(1)
    with pytest.raises(UsageError, match="needs class labels"):
        net(x, tau)
    with pytest.raises(UsageError, match="outside of the table of 3 rows"):
        net(x, tau, torch.tensor([3]))
    with pytest.raises(UsageError, match="takes 4 pixels a side"):
        net(torch.zeros(1, 1, 6, 6), tau, torch.tensor([0]))
    with pytest.raises(UsageError, match="classes or a text, not both"):
        UViT(4, label_dim=3, context_tokens=2)
    with pytest.raises(UsageError, match="an image of 5 pixels a side: it must be divisible by 2"):
        UViT(5)
    text = UViT(4, 1, 2, 2, 2, 4, context_tokens=2, context_dim=5)
    with pytest.raises(UsageError, match=r"a text of shape \(2, 4\), this U-ViT takes \(2, 5\)"):
        text(x, tau, torch.zeros(1, 2, 4))

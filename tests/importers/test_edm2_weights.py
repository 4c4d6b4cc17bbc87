"""Published EDM2 networks from constructor arguments and state dicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from repro import importers
from repro.diffusion.edm2 import EDM2Precond
from repro.models.edm2 import EDM2UNet

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 4,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 8,
}


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return EDM2Precond(EDM2UNet(**CONFIG)).state_dict()


def test_published_weights_are_half_and_become_single() -> None:
    half = {key: value.half() for key, value in state().items()}
    net = importers.build("edm2", "Precond", {**CONFIG, "use_fp16": True, "dropout": 0.1}, half)
    assert not net.training
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[key].float()), key


def test_building_leaves_the_generator_alone() -> None:
    given = state()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    importers.build("edm2", "Precond", CONFIG, given)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "name, config, change, message",
    [
        ("Unet", CONFIG, {}, "unknown EDM2 network 'Unet'"),
        ("Precond", {**CONFIG, "weights": "plain"}, {}, "no argument 'weights'"),
        ("UNet", {**CONFIG, "sigma_data": 0.5}, {}, "no argument 'sigma_data'"),
        ("Precond", CONFIG, {"unet.out_gain": None}, "lacks 'unet.out_gain'"),
        ("Precond", CONFIG, {"extra": torch.zeros(1)}, "has 'extra'"),
        ("Precond", CONFIG, {"unet.emb_noise.weight": torch.zeros(2, 2)}, r"\(2, 2\) in the checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, config: Any, change: dict[str, Any], message: str) -> None:
    given = {**state(), **change}
    given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        importers.build("edm2", name, config, given)

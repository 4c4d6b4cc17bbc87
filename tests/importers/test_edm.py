"""Published EDM arguments and state dicts into our networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from repro import importers
from repro.diffusion.precond import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from repro.models.adm import DhariwalUNet
from repro.models.song import SongUNet

SONG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 2,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
ADM: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def song_state() -> dict[str, torch.Tensor]:
    net = SongUNet(8, 1, 1, 2, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    return dict(EDMPrecond(net).state_dict())


def adm_state(out_channels: int) -> dict[str, torch.Tensor]:
    net = DhariwalUNet(8, 1, out_channels, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    return {f"model.{key}": value for key, value in net.state_dict().items()}


def test_weights_and_mode() -> None:
    state = song_state()
    before = torch.random.get_rng_state()
    net = importers.build("edm", "EDMPrecond", {**SONG, "sigma_data": 0.4}, state)
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(net, EDMPrecond)
    assert (net.sigma_data, net.label_dim, net.img_channels, net.img_resolution) == (0.4, 2, 1, 8)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_default_architectures() -> None:
    song = {key: value for key, value in SONG.items() if key != "model_type"}
    vp = importers.build("edm", "VPPrecond", {**song, "beta_d": 10.0}, song_state())
    assert isinstance(vp, VPPrecond)
    assert isinstance(vp.model, SongUNet)
    assert vp.beta_d == 10.0
    ve = importers.build("edm", "VEPrecond", {**song, "sigma_max": 50}, song_state())
    assert isinstance(ve, VEPrecond)
    assert ve.sigma_max == 50
    edm = importers.build("edm", "EDMPrecond", ADM, adm_state(1))
    assert isinstance(edm, EDMPrecond)
    assert isinstance(edm.model, DhariwalUNet)
    assert edm.sigma_max == math.inf
    limited = importers.build("edm", "EDMPrecond", {**ADM, "sigma_min": 0.01, "sigma_max": 70}, adm_state(1))
    assert isinstance(limited, EDMPrecond)
    assert (limited.sigma_min, limited.sigma_max) == (0.01, 70)


def test_iddpm_has_twice_the_channels_and_its_own_table() -> None:
    reference = iDDPMPrecond(DhariwalUNet(8, 1, 2, model_channels=16, channel_mult=[1], num_blocks=1))
    state = {"u": reference.u * 1.0002, **adm_state(2)}
    net = importers.build("edm", "iDDPMPrecond", ADM, state)
    assert isinstance(net, iDDPMPrecond)
    assert net.sigma_min == float(state["u"][999])
    with pytest.raises(ValueError, match="'u'"):
        importers.build("edm", "iDDPMPrecond", ADM, {**state, "u": reference.u * 1.01})


def test_keys_must_match() -> None:
    state = song_state()
    short = {key: value for key, value in state.items() if key != "model.map_layer0.bias"}
    with pytest.raises(ValueError, match=r"lacks 'model\.map_layer0\.bias'"):
        importers.build("edm", "EDMPrecond", SONG, short)
    with pytest.raises(ValueError, match=r"has 'extra\.weight'"):
        importers.build("edm", "EDMPrecond", SONG, {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"map_layer0\.bias' is \(3,\)"):
        importers.build("edm", "EDMPrecond", SONG, {**state, "model.map_layer0.bias": torch.zeros(3)})


def test_constant_buffers_must_have_their_values() -> None:
    state = song_state()
    key = next(key for key in state if key.endswith("resample_filter"))
    with pytest.raises(ValueError, match="resample_filter"):
        importers.build("edm", "EDMPrecond", SONG, {**state, key: state[key] * 1.01})


def test_unknown_names_and_arguments() -> None:
    state = song_state()
    with pytest.raises(ValueError, match="family 'other'"):
        importers.build("other", "EDMPrecond", SONG, state)
    with pytest.raises(ValueError, match="'Precond2'"):
        importers.build("edm", "Precond2", SONG, state)
    with pytest.raises(ValueError, match="'MyUNet'"):
        importers.build("edm", "EDMPrecond", {**SONG, "model_type": "MyUNet"}, state)
    with pytest.raises(ValueError, match="'novelty'"):
        importers.build("edm", "EDMPrecond", {**SONG, "novelty": 3}, state)
    neutral = {**SONG, "novelty": 0, "other": None, "third": False}
    assert isinstance(importers.build("edm", "EDMPrecond", neutral, state), EDMPrecond)
    with pytest.raises(ValueError, match="sigma_min"):
        importers.build("edm", "VPPrecond", {**SONG, "sigma_min": 0.1}, state)

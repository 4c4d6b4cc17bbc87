"""Averaged weights on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

from repro.errors import CorruptData
from repro.training import snapshots

META = {"trajectory": "t", "nimg": 8, "data_manifest": "m"}


class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.register_buffer("constant", torch.ones(2))


def save(folder: Path, net: Net) -> Path:
    average = [torch.full_like(p, 0.5) for p in net.parameters()]
    return snapshots.save(folder, 2_500_000, "half", snapshots.state_with(net, average), META)


def test_the_average_replaces_parameters_and_keeps_buffers(tmp_path: Path) -> None:
    net = Net()
    target = save(tmp_path, net)
    assert target == tmp_path / "ema" / "002500.000-half.safetensors"
    loaded = Net()
    with torch.no_grad():
        loaded.constant.zero_()
    assert snapshots.load(target, "t", loaded) == {"trajectory": "t", "nimg": "8", "data_manifest": "m"}
    assert all(bool((p == 0.5).all()) for p in loaded.parameters())
    assert torch.equal(loaded.constant, torch.ones(2))
    assert not any(bool((p == 0.5).all()) for p in net.parameters()), "the network itself is left alone"


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """The library orders metadata differently from call to call (20 equal orders of 3 keys by chance: 1e-15)."""
    net = Net()
    contents = {save(tmp_path / str(index), net).read_bytes() for index in range(20)}
    assert len(contents) == 1


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    target = save(tmp_path, Net())
    with safetensors.safe_open(target, framework="pt") as stream:
        assert set(stream.keys()) == {"linear.weight", "linear.bias", "constant"}
        assert stream.metadata()["nimg"] == "8"
    assert int.from_bytes(target.read_bytes()[:8], "little") % 8 == 0, "tensors are aligned"


@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    target = save(tmp_path, Net())
    target.write_bytes(target.read_bytes()[:keep])
    with pytest.raises(CorruptData, match=f"{target.name}.*delete it and run again"):
        snapshots.load(target, "t", Net())


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    target = save(tmp_path, Net())
    with pytest.raises(CorruptData, match="another trajectory"):
        snapshots.load(target, "other", Net())
    with pytest.raises(CorruptData, match="do not fit the network: linear.weight"):
        snapshots.load(target, "t", Net(width=4))
    with pytest.raises(CorruptData, match="do not fit the network"):
        snapshots.load(target, "t", nn.Linear(3, 2))

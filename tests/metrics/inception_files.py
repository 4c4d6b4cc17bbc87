"""Weights files of the right format for tests: FID Inception with seeded weights that let the signal through."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from repro.metrics.inception import FIDInception, from_state
from repro.metrics.weights import INCEPTION


@cache
def state() -> dict[str, Tensor]:
    """He-normal weights from a fixed seed under the 566 published keys."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        network = FIDInception()
    values = network.state_dict()
    for value in values.values():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.ndim == 2:
            value.normal_(0, 0.05, generator=generator)
    return dict(values)


def write_weights(folder: Path) -> str:
    """Write the state dict under torch-fidelity's name; returns its sha256."""
    path = folder / INCEPTION.names[0]
    torch.save(state(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TorchScriptInception(nn.Module):
    """What NVIDIA's archive looks like to clean-fid: `layers`, and a call that resizes and scales first."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, return_features: bool) -> Tensor:
        n, c, height, width = x.shape
        rows = torch.arange(299, dtype=torch.float32) * (torch.tensor(height / 299, dtype=torch.float32))
        columns = torch.arange(299, dtype=torch.float32) * (torch.tensor(width / 299, dtype=torch.float32))
        y0, x0 = rows.floor(), columns.floor()
        y1, x1 = (y0 + 1).clamp(max=height - 1.0), (x0 + 1).clamp(max=width - 1.0)
        dy, dx = (rows - y0)[:, None], columns - x0
        top = x[:, :, y0.long()]
        bottom = x[:, :, y1.long()]
        top = top[:, :, :, x0.long()] + (top[:, :, :, x1.long()] - top[:, :, :, x0.long()]) * dx
        bottom = bottom[:, :, :, x0.long()] + (bottom[:, :, :, x1.long()] - bottom[:, :, :, x0.long()]) * dx
        return self.layers((top + (bottom - top) * dy - 128) / 128)


class _Pool(nn.Module):
    def __init__(self, network: FIDInception) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["2048"]


def write_torchscript(folder: Path) -> None:
    """`inception-2015-12-05.pt` with the same weights, as clean-fid's modes clean and legacy_tensorflow want it."""
    layers = torch.jit.trace(_Pool(from_state(state())), torch.zeros(2, 3, 299, 299), check_trace=False)
    torch.jit.script(TorchScriptInception(layers)).save(str(folder / "inception-2015-12-05.pt"))

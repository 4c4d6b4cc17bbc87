"""The Inception network of every published FID: torchvision's blocks, changed where TensorFlow's graph differs.

"FID Inception" is the TensorFlow graph of 2015-12-05 with 1008 classes. Its state dict has torchvision's keys in
torchvision's order, 566 of them. What differs from `torchvision.models.inception_v3`: average pools inside the blocks
do not count padding, and the last block has a max pool in place of its average pool.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

SIZE = 299
DIM = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits", "spatial")


class FIDInception(nn.Module):
    """The network. Build it with `from_state`; on its own its weights are those of an untrained network."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = _BlockA(192, pool_features=32)
        self.Mixed_5c = _BlockA(256, pool_features=64)
        self.Mixed_5d = _BlockA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = _BlockC(768, channels_7x7=128)
        self.Mixed_6c = _BlockC(768, channels_7x7=160)
        self.Mixed_6d = _BlockC(768, channels_7x7=160)
        self.Mixed_6e = _BlockC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = _BlockE(1280)
        self.Mixed_7c = _LastBlockE(2048)
        self.fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(self, x: Tensor, layers: tuple[str, ...] = ("2048",)) -> dict[str, Tensor]:
        """Named features of images that are resized and scaled already.

        Args:
            x: (N, 3, 299, 299) float32, about -1..1 (see `repro.metrics.resize`).
            layers: some of `LAYERS`.

        Returns:
            "64", "192", "768", "2048": (N, that) means over space; "logits_unbiased", "logits": (N, 1008) without and
            with the bias; "spatial": (N, 2023), the first 7 channels of the 17x17 map after Mixed_6d's 1x1 branch,
            flattened in the order row, column, channel (sFID; Nash et al. 2021, in the ADM suite's layout).
        """
        found: dict[str, Tensor] = {}
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        found["64"] = x
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        found["192"] = x
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        spatial = x[:, :SPATIAL_CHANNELS]  # a block's output begins with its 1x1 branch
        x = self.Mixed_6e(x)
        found["768"] = x
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        found["2048"] = x
        result = {name: F.adaptive_avg_pool2d(value, 1).flatten(1) for name, value in found.items() if name in layers}
        if "spatial" in layers:
            result["spatial"] = spatial.permute(0, 2, 3, 1).flatten(1)
        if {"logits_unbiased", "logits"} & set(layers):
            logits = F.adaptive_avg_pool2d(x, 1).flatten(1).mm(self.fc.weight.T)
            result |= {"logits_unbiased": logits, "logits": logits + self.fc.bias}
        return {name: result[name] for name in layers}


def from_state(state: Mapping[str, Tensor]) -> FIDInception:
    """The network with some weights, in eval mode on the CPU.

    Args:
        state: the 566 published keys; strict.

    Raises:
        ValueError: another set of keys, or a shape that differs; names the first.
    """
    with torch.device("meta"):
        network = FIDInception()
    wanted = network.state_dict()
    for key in [*wanted, *state]:
        if key not in wanted or key not in state:
            raise ValueError(f"key {key!r} is {'missing' if key in wanted else 'not one of the network'}")
        if wanted[key].shape != state[key].shape:
            raise ValueError(f"{key} has shape {tuple(state[key].shape)}, {tuple(wanted[key].shape)} expected")
    network.load_state_dict(dict(state), assign=True)
    return network.eval().requires_grad_(False)


def _average(x: Tensor) -> Tensor:
    """3x3 mean over the pixels that exist: TensorFlow's SAME padding is not counted."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _BlockA(InceptionA):  # type: ignore[misc]  # torchvision is not typed here
    def _forward(self, x: Tensor) -> list[Tensor]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), five, three, self.branch_pool(_average(x))]


class _BlockC(InceptionC):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), seven, double, self.branch_pool(_average(x))]


class _BlockE(InceptionE):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], dim=1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], dim=1),
            self.branch_pool(self.pool(x)),
        ]

    def pool(self, x: Tensor) -> Tensor:
        return _average(x)


class _LastBlockE(_BlockE):
    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)

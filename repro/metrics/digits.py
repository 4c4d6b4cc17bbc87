"""Feature extractor for the embedded digits: a small classifier, trained once by `train_digits` and shipped.

Its distance is "digits FD" and never "FID": it sees 8x8 grey digits and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import CorruptData, UsageError

WEIGHTS_FILE = "digits.safetensors"
WEIGHTS_SHA256 = "3ac5c54aecfd527471eb9748c26f9780ef64b4196c8b536cab02b3fbbf3df7b8"
RESOLUTION = 8
NUM_CLASSES = 10
SPATIAL_CHANNELS = 7


class DigitsNet(nn.Module):
    """Convolutional classifier of 8x8 grey digits; 22,954 parameters at the default width.

    Args:
        width: channels of the first convolution.
        feature_dim: d, the dimension of the feature.
    """

    def __init__(self, width: int = 16, feature_dim: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.feature = nn.Linear(2 * width * (RESOLUTION // 4) ** 2, feature_dim)
        self.classifier = nn.Linear(feature_dim, NUM_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits.

        Args:
            images: (N, C, R, R) uint8, R a multiple of 8; channels and blocks are averaged to 8x8 grey.

        Returns:
            features (N, 64) float32, after SiLU; logits (N, 10) float32.
        """
        x = F.avg_pool2d(self._map(images), 2)
        features = F.silu(self.feature(x.flatten(1)))
        return features, self.classifier(features)

    def spatial(self, images: Tensor) -> Tensor:
        """The feature of digits sFD: where things are, not only what they are.

        Returns:
            (N, 112) float32: the first 7 channels of the last 4x4 map, flattened in the order row, column, channel, as
            the ADM suite flattens its 17x17 map.
        """
        return self._map(images)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def _map(self, images: Tensor) -> Tensor:
        """(N, 2 width, 4, 4): the last map before the pooling."""
        x = (to_grey8(images) - 127.5) / 127.5
        x = F.silu(self.conv1(x))
        x = F.avg_pool2d(F.silu(self.conv2(x)), 2)
        return F.silu(self.conv3(x))


def to_grey8(images: Tensor) -> Tensor:
    """Mean over channels and over blocks of R/8 x R/8 pixels: undoes the enlargement of the digits exactly.

    Args:
        images: (N, C, R, R) uint8, R a multiple of 8.

    Returns:
        (N, 1, 8, 8) float32 in 0..255.

    Raises:
        UsageError: another dtype or shape.
    """
    if images.dtype != torch.uint8:
        raise UsageError(f"the digits extractor takes uint8 images, not {images.dtype}")
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[2] % RESOLUTION or not images.shape[2]:
        raise UsageError(f"the digits extractor takes (N, C, R, R), R a multiple of 8, not {tuple(images.shape)}")
    n, channels, resolution, _ = images.shape
    block = resolution // RESOLUTION
    blocks = images.reshape(n, channels, RESOLUTION, block, RESOLUTION, block)
    # integer sums: the mean of equal values is that value, for any number of channels and any block
    return (blocks.sum(dim=(1, 3, 5), dtype=torch.int64) / (channels * block * block)).to(torch.float32)[:, None]


@functools.cache
def weights_bytes() -> bytes:
    """The shipped weights file, checked against the pinned digest.

    Raises:
        CorruptData: the file in the installed package is missing or another one.
    """
    resource = importlib.resources.files("repro.metrics") / "weights" / WEIGHTS_FILE
    try:
        content = resource.read_bytes()
    except OSError as error:
        raise CorruptData(f"repro/metrics/weights/{WEIGHTS_FILE}: cannot be read ({error}); reinstall repro") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise CorruptData(
            f"repro/metrics/weights/{WEIGHTS_FILE}: sha256 {digest[:12]}..., pinned is {WEIGHTS_SHA256[:12]}...; "
            "reinstall repro"
        )
    return content


def load_network() -> DigitsNet:
    """The network with the shipped weights, in eval mode, on the CPU."""
    from safetensors.torch import load

    network = DigitsNet()
    network.load_state_dict(load(weights_bytes()))
    return network.eval().requires_grad_(False)


def digits_features(images: Tensor, batch: int = 500) -> Tensor:
    """(N, 64) float32 features of uint8 images (N, C, R, R), in fixed batches counted from the first image."""
    network = load_network()
    with torch.no_grad():
        return torch.cat([network(part)[0] for part in torch.split(images, batch)])


def digits_spatial(images: Tensor, batch: int = 500) -> Tensor:
    """(N, 112) float32 spatial features of uint8 images (N, C, R, R), in fixed batches counted from the first image."""
    network = load_network()
    with torch.no_grad():
        return torch.cat([network.spatial(part) for part in torch.split(images, batch)])

"""Bridge to torch-fidelity: the digits extractor under a registered name, and one call for all of its metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from repro.metrics.digits import RESOLUTION, load_network

NAME = "digits"
FEATURES = "64"  # the feature after SiLU, d = 64: FD, precision, recall
LOGITS = "logits"  # 10 class logits: inception score
BATCH = 500
SPLITS = 10
NEIGHBOURS = 3


class DigitsExtractor(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is not typed
    """The shipped network as a torch-fidelity feature extractor with the layers "64" and "logits"."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)  # the other keyword arguments are the whole call's
        self.network = load_network()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, C, R, R) -> float32 features in the order of `features_list`."""
        features, logits = self.network(images)
        layers = {FEATURES: features, LOGITS: logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Layers that can be asked for."""
        return (FEATURES, LOGITS)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Layer of each of torch-fidelity's metrics."""
        return LOGITS if metric == "isc" else FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        """Never: compiled kernels would round differently."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """(1, 1, 8, 8) uint8; part of the interface."""
        return torch.zeros(1, 1, RESOLUTION, RESOLUTION, dtype=torch.uint8)


class ImageDataset(torch.utils.data.Dataset[Tensor]):
    """uint8 images (N, C, R, R) as torch-fidelity wants them: one tensor (C, R, R) an index."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def register_extractor() -> None:
    """Make the extractor known to torch-fidelity under the name "digits". Harmless when repeated."""
    if FEATURE_EXTRACTORS_REGISTRY.get(NAME) is not DigitsExtractor:
        register_feature_extractor(NAME, DigitsExtractor)


def digits_metrics(generated: Tensor, reference: Tensor) -> dict[str, float]:
    """Frechet distance, inception score, precision and recall by torch-fidelity, on the CPU.

    Args:
        generated, reference: uint8 (N, C, R, R); input1 and input2 of torch-fidelity.

    Returns:
        torch-fidelity's own keys.
    """
    register_extractor()
    with torch.random.fork_rng(devices=[]):  # its DataLoader draws a seed; a training run must not notice
        result: dict[str, float] = calculate_metrics(
            input1=ImageDataset(generated),
            input2=ImageDataset(reference),
            feature_extractor=NAME,  # also for precision and recall, whose default extractor is VGG16
            fid=True,
            isc=True,
            prc=True,
            kid=False,
            cuda=False,
            batch_size=BATCH,
            isc_splits=SPLITS,
            prc_neighborhood=NEIGHBOURS,
            save_cpu_ram=True,  # no worker processes
            cache=False,  # its key knows neither data nor weights
            verbose=False,
        )
    return result

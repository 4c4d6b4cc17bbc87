"""The papers' protocols on published extractors: FID and its relatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from repro.errors import CorruptData
from repro.metrics.backends import Extractor, Features
from repro.metrics.feature_protocol import FeatureProtocol
from repro.metrics.formats import Found, Pair
from repro.metrics.frechet import Array
from repro.metrics.inception_score import inception_score_adm
from repro.metrics.manifold import precision_recall
from repro.metrics.measure import BLOCK, features_of, measure
from repro.metrics.weights import StrPath

SPLIT_SIZE = 5000
NEIGHBOURS = 3


class InceptionProtocol(FeatureProtocol):
    """FID as EDM and EDM2 measure it: TensorFlow's 2015 Inception (tf1 resize) against published statistics.

    Args:
        labels: "random" (one integer below the number of classes from each image's own seed) or "balanced".
        extractor: torch-fidelity's name of the network.
        extractor_sha256: digest of its weights file, or the first digits of it (more are not published).
        reference: a published file (EDM's npz with `mu` and `sigma`, EDM2's pkl) looked for beside the weights, or the
            id of a reference that `repro ref` stored.
        quantise: how sampled images become uint8, a key of `repro.metrics.quantise.QUANTISERS`.
        resize: "tf1", the papers'; "clean" and "legacy_pytorch" are other metrics under the same name: never a paper's.
        n: images; scoring refuses another number.
        reference_digest: sha256 of the reference file or its first digits; "" takes any, the record has it.
        reference_resize: the preprocessing that the reference was made with, "" for `resize` itself.
    """

    NEUTRAL = {"resize": "tf1", "n": 50_000, "reference_digest": "", "reference_resize": ""}
    UNITS = {"n": "samples"}
    published = "the fid-refs folder that NVIDIA published with EDM (EDM2's: its dataset-refs folder)"
    backends = {"tf1": "torch-fidelity/tf1", "clean": "clean-fid/clean", "legacy_pytorch": "clean-fid/legacy_pytorch"}

    def __init__(
        self,
        labels: str = "random",
        extractor: str = "inception-v3-compat",
        extractor_sha256: str = "6726825d",
        reference: str = "cifar10-32x32.npz",
        quantise: str = "truncate",
        resize: str = "tf1",
        n: int = 50_000,
        reference_digest: str = "",
        reference_resize: str = "",
    ) -> None:
        super().__init__(
            labels, extractor, extractor_sha256, reference, quantise, resize, n, reference_digest, reference_resize
        )


class PytorchFIDProtocol(FeatureProtocol):
    """FID as U-ViT and ScaleLong measure it: pytorch-fid's port, half-pixel bilinear resize, rounding to 8 bits.

    U-ViT's ImageNet references are statistics of the tf1 resize: its mixed protocol is `reference_resize = 'tf1'`.

    Args: as `InceptionProtocol`.
    """

    UNITS = {"n": "samples"}
    network = "pytorch-fid"
    published = "the fid_stats files of U-ViT, or make it: repro ref make DATA --backend own/legacy_pytorch"
    backends = {"legacy_pytorch": "own/legacy_pytorch"}

    def __init__(
        self,
        labels: str = "random",
        extractor: str = "pytorch-fid",
        extractor_sha256: str = "6726825d",
        reference: str = "fid_stats_cifar10_train_pytorch.npz",
        quantise: str = "round",
        resize: str = "legacy_pytorch",
        n: int = 50_000,
        reference_digest: str = "",
        reference_resize: str = "",
    ) -> None:
        super().__init__(
            labels, extractor, extractor_sha256, reference, quantise, resize, n, reference_digest, reference_resize
        )


class ADMProtocol(FeatureProtocol):
    """The ADM suite, as U-DiT reports it: FID, sFID, IS, precision and recall (Dhariwal and Nichol 2021).

    FID and sFID use the statistics in the reference batch, precision and recall its 10,000 images.

    Args: as `InceptionProtocol`.
    """

    UNITS = {"n": "samples"}
    metrics = ("FID", "sFID", "IS", "precision", "recall")
    layers = ("features", "spatial", "logits")
    published = "the reference batches of the ADM evaluation suite (guided-diffusion, evaluations)"
    backends = {"tf1": "own/tf1"}

    def __init__(
        self,
        labels: str = "random",
        extractor: str = "inception-v3-compat",
        extractor_sha256: str = "6726825d",
        reference: str = "VIRTUAL_imagenet256_labeled.npz",
        quantise: str = "truncate",
        resize: str = "tf1",
        n: int = 50_000,
        reference_digest: str = "",
        reference_resize: str = "",
    ) -> None:
        super().__init__(
            labels, extractor, extractor_sha256, reference, quantise, resize, n, reference_digest, reference_resize
        )

    def finish(
        self, blocks: Iterable[Features], count: int, extractor: Extractor, weights_dir: StrPath | None = None
    ) -> dict[str, float]:
        """The five metrics. Keeps the features of all images: 410 MB at n = 50,000."""
        found = self.load(weights_dir)
        score = SplitScore()
        measured = measure(score.watch(blocks), ["features", "spatial"], ["features"], count)
        real = self._real(found, extractor, weights_dir)
        near = precision_recall(measured.kept["features"], real, NEIGHBOURS)
        return {
            "FID": self._distance(measured.moments["features"], found, "features", weights_dir),
            "sFID": self._distance(measured.moments["spatial"], found, "spatial", weights_dir),
            "IS": score.value(),
            "precision": near.precision,
            "recall": near.recall,
        }

    def _real(self, found: Found, extractor: Extractor, weights_dir: StrPath | None) -> Array:
        """Features of the real images for precision and recall."""
        if found.features is not None:
            return found.features
        if found.images is None:
            path = self._require_reference(weights_dir)
            raise CorruptData(f"{path}: has no images, which precision and recall need (arr_0)")
        blocks = features_of(found.images.batches(BLOCK), extractor)
        kept = measure(blocks, [], ["features"], len(found.images)).kept["features"]
        return kept  # type: ignore[return-value]  # float32 is enough: it is converted block by block


class DINOv2Protocol(FeatureProtocol):
    """FD-DINOv2 as EDM2 measures it: the class token of ViT-L/14 at 224 pixels.

    Unverified: the interpolation of the network's position table was never held against the published one's, see
    `repro.metrics.dinov2`. No digest of the weights is published; bind the one of the file that you trust.

    Args: as `InceptionProtocol`.
    """

    UNITS = {"n": "samples"}
    primary = "FD-DINOv2"
    metrics = ("FD-DINOv2",)
    statistic = "dinov2"
    network = "dinov2_vitl14"
    published = "the dataset-refs folder that NVIDIA published with EDM2"
    backends = {"dinov2": "own/dinov2"}

    def __init__(
        self,
        labels: str = "random",
        extractor: str = "dinov2_vitl14",
        extractor_sha256: str = "",
        reference: str = "img512.pkl",
        quantise: str = "truncate",
        resize: str = "dinov2",
        n: int = 50_000,
        reference_digest: str = "",
        reference_resize: str = "",
    ) -> None:
        super().__init__(
            labels, extractor, extractor_sha256, reference, quantise, resize, n, reference_digest, reference_resize
        )

    def pair(self, found: Found, layer: str, weights_dir: StrPath | None) -> Pair:
        """EDM2's files name DINOv2's statistics; a stored reference has only these."""
        if found.kind == "reference" and "features" in found.statistics:
            found = Found(found.kind, found.sha256, {"dinov2": found.statistics["features"]}, found.n)
        return super().pair(found, layer, weights_dir)


class SplitScore:
    """The ADM suite's inception score of blocks that pass by, without keeping more than one split."""

    def __init__(self, split_size: int = SPLIT_SIZE) -> None:
        self.split_size = split_size
        self._rows: list[Tensor] = []
        self._scores: list[float] = []

    def watch(self, blocks: Iterable[Features]) -> Iterator[Features]:
        """The blocks, unchanged."""
        for block in blocks:
            self._rows += torch.from_numpy(block["logits"]).unbind(0)
            while len(self._rows) >= self.split_size:
                self._take(self.split_size)
            yield block

    def value(self) -> float:
        """Mean over the splits, a shorter last one included."""
        if self._rows:
            self._take(len(self._rows))
        return sum(self._scores) / len(self._scores)

    def _take(self, count: int) -> None:
        rows, self._rows = self._rows[:count], self._rows[count:]
        self._scores.append(inception_score_adm(torch.stack(rows).numpy(), count))

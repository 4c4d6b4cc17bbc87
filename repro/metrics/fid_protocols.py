"""The papers' protocols on published extractors: FID and its relatives, and what each refuses.

A protocol fixes extractor and digest of its weights, resize, quantisation, n, and the reference statistics with their
digest; all of it is configuration and stands in the record. Scoring refuses what does not match. Images become features
block by block, so that 50,000 of them need little memory and may be shared out over ranks (`repro.launch.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics import references
from repro.metrics.backends import BACKENDS, Extractor, Features
from repro.metrics.formats import Found, Pair, read_file
from repro.metrics.frechet import Array, frechet_distance
from repro.metrics.inception_score import inception_score_adm
from repro.metrics.manifold import precision_recall
from repro.metrics.measure import BLOCK, features_of, measure
from repro.metrics.moments import StreamedMoments
from repro.metrics.quantise import QUANTISERS
from repro.metrics.weights import StrPath, file_sha256, missing_line, search_folders

LABEL_CHOICES = ("random", "balanced")
SPLIT_SIZE = 5000
NEIGHBOURS = 3


class FeatureProtocol:
    """What the protocols below have in common. Not configurable itself: each declares its own defaults.

    layers: features that the extractor computes; dims follow from the backend. statistic: which of a file's statistics
    are the reference's.
    """

    metric_prefix: ClassVar[str] = ""
    primary: ClassVar[str] = "FID"
    metrics: ClassVar[tuple[str, ...]] = ("FID",)
    layers: ClassVar[tuple[str, ...]] = ("features",)
    statistic: ClassVar[str] = "features"
    backends: ClassVar[dict[str, str]]
    """Resize -> backend."""
    network: ClassVar[str] = "inception-v3-compat"
    published: ClassVar[str]
    """Where the reference is to be had."""

    def __init__(
        self,
        labels: str,
        extractor: str,
        extractor_sha256: str,
        reference: str,
        quantise: str,
        resize: str,
        n: int,
        reference_digest: str,
        reference_resize: str,
    ) -> None:
        check_choices(labels, quantise)
        name = type(self).__name__
        if extractor != self.network:
            raise UsageError(f"{name} has the extractor {self.network!r}, not {extractor!r}")
        if resize not in self.backends:
            raise UsageError(f"{name}.resize must be {' or '.join(map(repr, self.backends))}, not {resize!r}")
        if self.backend_weights_pinned(resize) and len(extractor_sha256) < 8:
            raise UsageError("extractor_sha256 needs 8 hexadecimal digits or more")
        if n < 2:
            raise UsageError(f"{name}.n must be 2 or more, not {n}")
        self.labels = labels
        self.extractor = extractor
        self.extractor_sha256 = extractor_sha256.lower()
        self.reference = reference
        self.quantise = quantise
        self.resize = resize
        self.n = n
        self.reference_digest = reference_digest.lower()
        self.reference_resize = reference_resize or resize

    def backend_weights_pinned(self, resize: str) -> bool:
        """Whether the digest of the weights is published."""
        file = BACKENDS[self.backends[resize]].weights
        return file is not None and bool(file.sha256)

    # what has to be there

    def missing(self, weights_dir: StrPath | None = None) -> list[str]:
        """What has to be fetched before `score`, one line each, with how to get it.

        Args:
            weights_dir: folder of weights and reference files; torch.hub's `checkpoints` folder is searched too.
        """
        lines = []
        file = BACKENDS[self.backends[self.resize]].weights
        if file is not None and (line := missing_line(file, weights_dir)):
            lines.append(line)
        if self._reference_path(weights_dir) is None:
            lines.append(
                f"{search_folders(weights_dir)[0] / self.reference}: reference statistics not found; fetch the file of "
                f"that name from {self.published}"
            )
        return lines

    def _reference_path(self, weights_dir: StrPath | None) -> Path | None:
        if stored := references.find(self.reference, weights_dir):
            return stored
        paths = (folder / self.reference for folder in search_folders(weights_dir))
        return next((path for path in paths if path.is_file()), None)

    def _require_reference(self, weights_dir: StrPath | None) -> Path:
        path = self._reference_path(weights_dir)
        if path is None:
            raise MissingPrerequisite(self.missing(weights_dir)[-1])
        return path

    def reference_sha256(self, reference: Tensor, weights_dir: StrPath | None = None) -> str:
        """Digest of the reference file; the reference images are not used.

        Raises:
            MissingPrerequisite: the file is not there.
            UsageError: it is not the one that `reference_digest` pins.
        """
        path = self._require_reference(weights_dir)
        digest = file_sha256(path)
        if not digest.startswith(self.reference_digest):
            raise UsageError(
                f"{path}: sha256 {digest[:12]}..., but the protocol's reference is {self.reference_digest[:12]}..."
            )
        return digest

    def load(self, weights_dir: StrPath | None = None) -> Found:
        """The reference: statistics, and images or features where the file has them.

        Raises:
            MissingPrerequisite, CorruptData: it is not there, or damaged.
            UsageError: another file than pinned, or statistics of another preprocessing.
        """
        digest = self.reference_sha256(torch.empty(0), weights_dir)
        path = self._require_reference(weights_dir)
        if not references.is_reference(path):
            return read_file(path)
        reference = references.read(path)
        if reference.preprocessing != self.reference_resize:
            raise UsageError(
                f"{path}: statistics of the preprocessing {reference.preprocessing!r}, but "
                f"{type(self).__name__} compares with {self.reference_resize!r}"
            )
        real = None if reference.real is None else reference.real.astype("float64")
        return Found("reference", digest, reference.statistics, reference.n, real)

    def pair(self, found: Found, layer: str, weights_dir: StrPath | None) -> Pair:
        """Mean and covariance of the reference, of the dimension of our features."""
        name = self.statistic if layer == "features" else layer
        dim = BACKENDS[self.backends[self.resize]].dims[layer]
        path = self._require_reference(weights_dir)
        if name not in found.statistics:
            raise CorruptData(f"{path}: has no statistics of {name}; it has {', '.join(found.statistics) or 'none'}")
        mu, sigma = found.statistics[name]
        if len(mu) != dim:
            raise CorruptData(
                f"{path}: mu {mu.shape} and sigma {sigma.shape} of {name}, expected ({dim},) and ({dim}, {dim})"
            )
        return mu, sigma

    # scoring

    def open(self, weights_dir: StrPath | None = None, device: str = "cpu") -> Extractor:
        """The extractor, its weights checked. Raises MissingPrerequisite or CorruptData."""
        name = self.backends[self.resize]
        return Extractor(name, weights_dir, device, self.layers, self.extractor_sha256)

    def check_images(self, images: int) -> None:
        """Refuse another number of images than the protocol's."""
        if images != self.n:
            raise UsageError(
                f"{images} images, but {type(self).__name__} is a protocol of n = {self.n}; to score another number "
                f"bind {type(self).__name__}.n too (the record then has it, and is no value of the paper's protocol)"
            )

    def score(
        self, generated: Tensor, reference: Tensor, weights_dir: StrPath | None = None, device: str = "cpu"
    ) -> dict[str, float]:
        """Score generated images against the published statistics.

        Args:
            generated: (n, C, R, R) uint8; grey images are repeated to three channels.
            reference: not used: the statistics of the whole training set are in the reference file.
            weights_dir: folder of weights and reference files.
            device: where the network runs, "cpu" or "cuda".

        Returns:
            the values of `metrics`.

        Raises:
            MissingPrerequisite: weights or reference are not there; says how to get them.
            CorruptData: weights or reference are not what they should be.
            UsageError: images of another kind or number, or a reference of another protocol.
        """
        check_images("generated", generated, 2)
        self.check_images(len(generated))
        return self.score_any(generated, reference, weights_dir, device)

    def score_any(
        self, generated: Tensor, reference: Tensor, weights_dir: StrPath | None = None, device: str = "cpu"
    ) -> dict[str, float]:
        """`score` of any number of images: for previews, never for a record."""
        check_images("generated", generated, 2)
        if lines := self.missing(weights_dir):
            raise MissingPrerequisite("; ".join(lines))
        self.load(weights_dir)  # refuse before the work
        extractor = self.open(weights_dir, device)
        return self.finish(
            features_of(torch.split(generated, BLOCK), extractor), len(generated), extractor, weights_dir
        )

    def finish(
        self, blocks: Iterable[Features], count: int, extractor: Extractor, weights_dir: StrPath | None = None
    ) -> dict[str, float]:
        """The values of `metrics` from the features of all images, in blocks in the order of the images."""
        found = self.load(weights_dir)
        measured = measure(blocks, ["features"])
        return {self.primary: self._distance(measured.moments["features"], found, "features", weights_dir)}

    def _distance(self, moments: StreamedMoments, found: Found, layer: str, weights_dir: StrPath | None) -> float:
        mu, sigma = self.pair(found, layer, weights_dir)
        return frechet_distance(moments.mean, moments.covariance, mu, sigma)


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


def load_reference(path: StrPath, dim: int) -> Pair:
    """Read and validate reference statistics of one dimension.

    Args:
        path: npz file with `mu` and `sigma`.
        dim: d, the dimension of the features.

    Returns:
        mu (d,), sigma (d, d), float64.

    Raises:
        CorruptData: unreadable, pickled, of another shape, not finite or not a covariance; names the file.
    """
    found = read_file(Path(path))
    if "features" not in found.statistics:
        raise CorruptData(f"{path}: not a file of statistics (no mu and sigma)")
    mu, sigma = found.statistics["features"]
    if len(mu) != dim:
        raise CorruptData(f"{path}: mu {mu.shape} and sigma {sigma.shape}, expected ({dim},) and ({dim}, {dim})")
    return mu, sigma


def check_choices(labels: str, quantise: str) -> None:
    """Raise UsageError for a rule of labels or of quantisation that does not exist."""
    for name, value, choices in (("labels", labels, LABEL_CHOICES), ("quantise", quantise, tuple(QUANTISERS))):
        if value not in choices:
            raise UsageError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def check_images(name: str, images: Tensor, minimum: int) -> None:
    """Raise UsageError for images of another kind than uint8 (N, 1 or 3, R, R), or fewer than `minimum`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"{name} images must be uint8 (N, 1 or 3, R, R), not {images.dtype} {tuple(images.shape)}")
    if len(images) < minimum:
        raise UsageError(f"{name}: {len(images)} images, {minimum} or more are needed")

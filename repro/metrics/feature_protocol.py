"""What the papers' protocols on published extractors have in common: what they need, refuse and compute.

A protocol fixes extractor and digest of its weights, resize, quantisation, n, and the reference statistics with their
digest; all of it is configuration and stands in the record. Scoring refuses what does not match. Images become features
block by block, so that 50,000 of them need little memory and may be shared out over ranks (`repro.launch.evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics import references
from repro.metrics.backends import BACKENDS, Extractor, Features
from repro.metrics.formats import Found, Pair, read_file
from repro.metrics.frechet import frechet_distance
from repro.metrics.measure import BLOCK, features_of, measure
from repro.metrics.moments import StreamedMoments
from repro.metrics.quantise import QUANTISERS
from repro.metrics.weights import StrPath, download, file_sha256, find, missing_line, search_folders

LABEL_CHOICES = ("random", "balanced")


class FeatureProtocol:
    """What the protocols below have in common. Not configurable itself: each declares its own defaults.

    layers: features that the extractor computes; dims follow from the backend. statistic: which of a file's statistics
    are the reference's.
    """

    streamed: ClassVar[bool] = True
    """Whether the reference is stored statistics, so that no data set is needed."""
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

    def fetch(self, weights_dir: StrPath | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        """Download the extractor's weights unless they are there.

        Raises:
            MissingPrerequisite: there is no network, or nowhere to fetch them from; says which file to copy where.
            CorruptData: what came is another file.
        """
        file = BACKENDS[self.backends[self.resize]].weights
        if file is not None and find(file, weights_dir) is None:
            say(f"fetching {file.title} from {file.url}")
            download(file, weights_dir)

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
            raise MissingPrerequisite(*lines)
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

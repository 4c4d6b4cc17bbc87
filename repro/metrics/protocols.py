"""Scoring protocols: how generated uint8 images become metric values.

A protocol is plain configuration. All have the attributes `metric_prefix`, `labels` (how classes of generated images
are chosen: "random" or "balanced"), `quantise`, `primary` (name of the metric that decides) and `metrics` (all names),
and the methods `missing`, `reference_sha256` and `score`.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from repro.diffusion.draws import derive_seed
from repro.errors import UsageError
from repro.metrics.digits import NUM_CLASSES, WEIGHTS_SHA256, digits_features, digits_spatial
from repro.metrics.feature_protocol import check_choices, check_images, load_reference
from repro.metrics.fid_protocols import (
    ADMProtocol,
    DINOv2Protocol,
    InceptionProtocol,
    PytorchFIDProtocol,
)
from repro.metrics.frechet import Array, Moments, frechet_distance
from repro.metrics.weights import StrPath

__all__ = [
    "ADMProtocol",
    "DINOv2Protocol",
    "DigitsProtocol",
    "InceptionProtocol",
    "PytorchFIDProtocol",
    "ScoringProtocol",
    "floor",
    "load_reference",
    "preview_scores",
]

MIN_IMAGES = 10  # one image for each split of the inception score
PREVIEW = "preview "
"""What the names of in-training metrics begin with: no table has a metric of such a name."""


class ScoringProtocol(Protocol):
    """What the evaluation code asks of every protocol."""

    labels: str
    quantise: str

    @property
    def metric_prefix(self) -> str: ...

    @property
    def primary(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def missing(self, weights_dir: StrPath | None = None) -> list[str]: ...

    def reference_sha256(self, reference: Tensor, weights_dir: StrPath | None = None) -> str: ...

    def score(
        self, generated: Tensor, reference: Tensor, weights_dir: StrPath | None = None, device: str = "cpu"
    ) -> dict[str, float]: ...


class DigitsProtocol:
    """Metrics of the embedded digits: FD, IS, precision and recall on the shipped extractor, by torch-fidelity.

    Args:
        labels: "balanced" (class i mod 10) or "random". Class proportions dominate the spread of digits FD.
        extractor: name of the feature extractor.
        extractor_sha256: digest of its weights file.
        quantise: how sampled images become uint8, a key of `repro.metrics.quantise.QUANTISERS`; "truncate" is
            floor(clip(127.5 x + 128, 0, 255)).
        spatial: also report digits sFD, on features that keep their place (the ADM suite's fifth metric).
    """

    NEUTRAL = {"spatial": False}
    streamed = False

    metric_prefix = "digits"
    primary = "digits FD"

    def __init__(
        self,
        labels: str = "balanced",
        extractor: str = "digits",
        extractor_sha256: str = WEIGHTS_SHA256,
        quantise: str = "truncate",
        spatial: bool = False,
    ) -> None:
        check_choices(labels, quantise)
        if extractor != "digits":
            raise UsageError(f"DigitsProtocol has the extractor 'digits', not {extractor!r}")
        if extractor_sha256 != WEIGHTS_SHA256:
            raise UsageError(f"extractor_sha256 {extractor_sha256[:12]!r} is not the shipped {WEIGHTS_SHA256[:12]!r}")
        self.labels = labels
        self.extractor = extractor
        self.extractor_sha256 = extractor_sha256
        self.quantise = quantise
        self.spatial = spatial

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics."""
        suite = ("digits FD", "digits IS", "digits precision", "digits recall")
        return (*suite, "digits sFD") if self.spatial else suite

    def missing(self, weights_dir: StrPath | None = None) -> list[str]:
        """What has to be fetched before `score`: nothing, the weights ship with this package."""
        return []

    def reference_sha256(self, reference: Tensor, weights_dir: StrPath | None = None) -> str:
        """Digest of the reference images (N, C, R, R) uint8, their shape and the extractor."""
        digest = hashlib.sha256(f"{self.extractor_sha256} {tuple(reference.shape)} {reference.dtype} ".encode())
        digest.update(reference.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def score(
        self, generated: Tensor, reference: Tensor, weights_dir: StrPath | None = None, device: str = "cpu"
    ) -> dict[str, float]:
        """Score generated images against the reference images.

        Args:
            generated, reference: (N, C, R, R) uint8, R a multiple of 8; 10 images or more each.
            weights_dir: not used here.
            device: not used here; the extractor is small, and the CPU is the same everywhere.

        Returns:
            the values of `metrics`. Precision is the share of generated images near a reference image.

        Raises:
            UsageError: images of another kind, or too few.
        """
        from repro.metrics.fidelity import digits_metrics  # torch-fidelity is heavy

        for name, images in (("generated", generated), ("reference", reference)):
            check_images(name, images, MIN_IMAGES)
        found = digits_metrics(generated, reference)
        scores = {
            "digits FD": float(found["frechet_inception_distance"]),
            "digits IS": float(found["inception_score_mean"]),
            "digits precision": float(found["precision"]),
            "digits recall": float(found["recall"]),
        }
        if self.spatial:
            pairs = (_statistics(digits_spatial(images)) for images in (generated, reference))
            (mu, sigma), (mu_ref, sigma_ref) = pairs
            scores["digits sFD"] = frechet_distance(mu, sigma, mu_ref, sigma_ref)
        return scores


def preview_scores(
    protocol: ScoringProtocol,
    generated: Tensor,
    reference: Tensor,
    weights_dir: StrPath | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Scores in training, under names that no cell is made of: "preview FID (n = 5000)". Arguments as in `score`."""
    found = getattr(protocol, "score_any", protocol.score)(generated, reference, weights_dir, device)
    return {f"{PREVIEW}{name} (n = {len(generated)})": value for name, value in found.items()}


def floor(reference: Tensor, labels: Tensor, n: int, seed: int) -> float:
    """digits FD of a class-balanced resample of the reference: what a perfect generator of n images would score.

    Args:
        reference: (N, C, R, R) uint8.
        labels: (N,) int64 in 0..9, every class present.
        n: images of the resample, drawn with replacement; image i has class i mod 10.
        seed: of the resample.

    Raises:
        UsageError: images of another kind, a class without images, or n < 2.
    """
    check_images("reference", reference, 2)
    if n < 2:
        raise UsageError(f"a floor needs 2 images or more, not {n}")
    words = np.random.Philox(key=derive_seed(seed, "floor")).random_raw(n)
    picks = np.empty(n, dtype=np.int64)
    for digit in range(NUM_CLASSES):
        members = np.flatnonzero(labels.numpy() == digit)
        if len(members) == 0:
            raise UsageError(f"no reference image of class {digit}")
        rows = slice(digit, n, NUM_CLASSES)
        picks[rows] = members[(words[rows] % np.uint64(len(members))).astype(np.int64)]
    features = digits_features(reference)
    return frechet_distance(*_statistics(features[torch.from_numpy(picks)]), *_statistics(features))


def _statistics(features: Tensor) -> tuple[Array, Array]:
    moments = Moments()
    moments.update(features.numpy())
    return moments.mean, moments.covariance

"""Scoring protocols: how generated uint8 images become metric values.

A protocol is plain configuration. All have the attributes `metric_prefix`, `labels` (how classes of generated images
are chosen: "random" or "balanced"), `quantise`, `primary` (name of the metric that decides) and `metrics` (all names),
and the methods `missing`, `reference_sha256` and `score`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repro.diffusion.draws import derive_seed
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics.digits import NUM_CLASSES, WEIGHTS_SHA256, digits_features
from repro.metrics.frechet import Array, Moments, frechet_distance

MIN_IMAGES = 10  # one image for each split of the inception score
INCEPTION_DIM = 2048
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_BATCH = 50
LABEL_CHOICES = ("random", "balanced")
QUANTISE_CHOICES = ("truncate",)

StrPath = str | os.PathLike[str]


class ScoringProtocol(Protocol):
    """What the evaluation code asks of every protocol."""

    metric_prefix: str
    primary: str
    metrics: tuple[str, ...]
    labels: str
    quantise: str

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
        quantise: how sampled images become uint8; "truncate" is floor(clip(127.5 x + 128, 0, 255)).
    """

    metric_prefix = "digits"
    primary = "digits FD"
    metrics = ("digits FD", "digits IS", "digits precision", "digits recall")

    def __init__(
        self,
        labels: str = "balanced",
        extractor: str = "digits",
        extractor_sha256: str = WEIGHTS_SHA256,
        quantise: str = "truncate",
    ) -> None:
        _check_choices(labels, quantise)
        if extractor != "digits":
            raise UsageError(f"DigitsProtocol has the extractor 'digits', not {extractor!r}")
        if extractor_sha256 != WEIGHTS_SHA256:
            raise UsageError(f"extractor_sha256 {extractor_sha256[:12]!r} is not the shipped {WEIGHTS_SHA256[:12]!r}")
        self.labels = labels
        self.extractor = extractor
        self.extractor_sha256 = extractor_sha256
        self.quantise = quantise

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
            _check_images(name, images, MIN_IMAGES)
        found = digits_metrics(generated, reference)
        return {
            "digits FD": float(found["frechet_inception_distance"]),
            "digits IS": float(found["inception_score_mean"]),
            "digits precision": float(found["precision"]),
            "digits recall": float(found["recall"]),
        }


class InceptionProtocol:
    """FID as EDM measures it: TensorFlow's 2015 Inception (tf1 resize) against published statistics.

    Args:
        labels: "random" (one integer below the number of classes from each image's own seed) or "balanced".
        extractor: torch-fidelity's name of the network.
        extractor_sha256: digest of its weights file, or the first digits of it (more are not published).
        reference: npz file with `mu` (2048,) and `sigma` (2048, 2048), looked for beside the weights.
        quantise: how sampled images become uint8; "truncate" is floor(clip(127.5 x + 128, 0, 255)).
    """

    metric_prefix = ""
    primary = "FID"
    metrics = ("FID",)

    def __init__(
        self,
        labels: str = "random",
        extractor: str = "inception-v3-compat",
        extractor_sha256: str = "6726825d",
        reference: str = "cifar10-32x32.npz",
        quantise: str = "truncate",
    ) -> None:
        _check_choices(labels, quantise)
        if extractor != "inception-v3-compat":
            raise UsageError(f"InceptionProtocol has the extractor 'inception-v3-compat', not {extractor!r}")
        if len(extractor_sha256) < 8:
            raise UsageError("extractor_sha256 needs 8 hexadecimal digits or more")
        self.labels = labels
        self.extractor = extractor
        self.extractor_sha256 = extractor_sha256.lower()
        self.reference = reference
        self.quantise = quantise

    def missing(self, weights_dir: StrPath | None = None) -> list[str]:
        """What has to be fetched before `score`, one line each, with how to get it.

        Args:
            weights_dir: folder of weights and reference files; None is torch.hub's `checkpoints` folder.
        """
        folder = _weights_folder(weights_dir)
        lines = []
        if self._weights_path(folder) is None:
            lines.append(
                f"{folder / INCEPTION_FILES[0]}: Inception weights not found; fetch them from torch-fidelity's "
                "release v0.2.0 on GitHub (pytorch-fid's pt_inception file of the same digest serves too)"
            )
        if not (folder / self.reference).is_file():
            lines.append(
                f"{folder / self.reference}: reference statistics not found; fetch the file of that name from the "
                "fid-refs folder that NVIDIA published with EDM"
            )
        return lines

    def reference_sha256(self, reference: Tensor, weights_dir: StrPath | None = None) -> str:
        """Digest of the reference file; the reference images are not used.

        Raises:
            MissingPrerequisite: the file is not there.
        """
        folder = _weights_folder(weights_dir)
        if not (folder / self.reference).is_file():
            raise MissingPrerequisite(self.missing(weights_dir)[-1])
        return _file_sha256(folder / self.reference)

    def score(
        self, generated: Tensor, reference: Tensor, weights_dir: StrPath | None = None, device: str = "cpu"
    ) -> dict[str, float]:
        """FID of generated images against the published statistics.

        Args:
            generated: (N, C, R, R) uint8, two or more; grey images are repeated to three channels.
            reference: not used: the statistics of the whole training set are in the reference file.
            weights_dir: folder of weights and reference files; None is torch.hub's `checkpoints` folder.
            device: where the network runs, "cpu" or "cuda".

        Returns:
            the values of `metrics`.

        Raises:
            MissingPrerequisite: weights or reference are not there; says how to get them.
            CorruptData: weights or reference are not what they should be.
            UsageError: images of another kind, or too few.
        """
        _check_images("generated", generated, 2)
        if lines := self.missing(weights_dir):
            raise MissingPrerequisite("; ".join(lines))
        folder = _weights_folder(weights_dir)
        mu, sigma = load_reference(folder / self.reference, INCEPTION_DIM)
        moments = self._moments(generated, folder, device)
        return {"FID": frechet_distance(moments.mean, moments.covariance, mu, sigma)}

    def _moments(self, images: Tensor, folder: Path, device: str) -> Moments:
        """Moments of the 2048 features, in fixed batches counted from the first image."""
        network = self._network(folder, device)
        moments = Moments()
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for batch in torch.split(images, INCEPTION_BATCH):
                rgb = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch
                moments.update(network(rgb.to(device))[0].double().cpu().numpy())
        return moments

    def _network(self, folder: Path, device: str) -> Any:
        from torch_fidelity.utils import create_feature_extractor  # heavy

        path = self._weights_path(folder)
        if path is None:
            raise MissingPrerequisite(self.missing(folder)[0])
        digest = _file_sha256(path)
        if not digest.startswith(self.extractor_sha256):
            raise CorruptData(f"{path}: sha256 {digest[:12]}..., expected {self.extractor_sha256}...")
        try:
            # torch-fidelity unpickles the file without restrictions: let it have only what loads with them
            torch.load(path, map_location="cpu", weights_only=True)
            return create_feature_extractor(
                self.extractor,
                [str(INCEPTION_DIM)],
                cuda=device.startswith("cuda"),
                verbose=False,
                feature_extractor_weights_path=str(path),
            )
        except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise CorruptData(f"{path}: not the weights of {self.extractor} ({type(error).__name__})") from error

    @staticmethod
    def _weights_path(folder: Path) -> Path | None:
        return next((folder / name for name in INCEPTION_FILES if (folder / name).is_file()), None)


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
    _check_images("reference", reference, 2)
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


def load_reference(path: StrPath, dim: int) -> tuple[Array, Array]:
    """Read and validate reference statistics.

    Args:
        path: npz file with `mu` and `sigma`.
        dim: d, the dimension of the features.

    Returns:
        mu (d,), sigma (d, d), float64.

    Raises:
        CorruptData: unreadable, pickled, of another shape, not finite or not a covariance; names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            mu, sigma = np.asarray(archive["mu"], dtype=np.float64), np.asarray(archive["sigma"], dtype=np.float64)
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        raise CorruptData(f"{path}: not a file of statistics ({type(error).__name__}: {error})") from error
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise CorruptData(f"{path}: mu {mu.shape} and sigma {sigma.shape}, expected ({dim},) and ({dim}, {dim})")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise CorruptData(f"{path}: statistics are not finite")
    if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or np.diagonal(sigma).min() < 0:
        raise CorruptData(f"{path}: sigma is not symmetric with a diagonal >= 0, hence no covariance")
    return mu, sigma


def _statistics(features: Tensor) -> tuple[Array, Array]:
    moments = Moments()
    moments.update(features.numpy())
    return moments.mean, moments.covariance


def _check_choices(labels: str, quantise: str) -> None:
    for name, value, choices in (("labels", labels, LABEL_CHOICES), ("quantise", quantise, QUANTISE_CHOICES)):
        if value not in choices:
            raise UsageError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def _check_images(name: str, images: Tensor, minimum: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"{name} images must be uint8 (N, 1 or 3, R, R), not {images.dtype} {tuple(images.shape)}")
    if len(images) < minimum:
        raise UsageError(f"{name}: {len(images)} images, {minimum} or more are needed")


def _weights_folder(weights_dir: StrPath | None) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" if weights_dir is None else Path(weights_dir)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

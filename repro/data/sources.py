"""Data sources: where images come from before they are shards.

A source has the attributes `name` (also the first part of its folder's name), `num_classes` (0: unlabelled),
`count` (images expected, None where it is not known), `embedded` (ships with a dependency) and `options` (what the
images depend on beside their resolution), and a method `images(resolution, channels)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from repro.errors import CorruptData, MissingPrerequisite, UsageError

DIGITS_RESOLUTION = 8
DIGITS_LEVELS = 16  # grey values run from 0 to 16 inclusive

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Source(Protocol):
    """What `repro.data.shards.prepare` and `repro.data.stream.Dataset` need of a source."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def count(self) -> int | None: ...

    @property
    def embedded(self) -> bool: ...

    @property
    def options(self) -> dict[str, bool | int | str]: ...

    def images(self, resolution: int, channels: int) -> tuple[Images, Labels]: ...

    def missing_message(self, folder: Path | None = None) -> str: ...


class Digits:
    """scikit-learn's digits, 1,797 real grey images of 8x8, and their horizontal mirror images with the labels kept.

    With the mirror images horizontal flips are a symmetry of the data, as the papers assume of theirs.

    Args:
        count: number of images expected, mirror images included.
        mirrored: append the mirror image of every image.
    """

    embedded = True
    num_classes = 10

    def __init__(self, count: int | None = 3594, mirrored: bool = True) -> None:
        self.count = count
        self.mirrored = mirrored
        self.name = "digits" if mirrored else "digits-unmirrored"
        self.options: dict[str, bool | int | str] = {"mirrored": mirrored, "resize": "pixel repetition"}

    def images(self, resolution: int, channels: int) -> tuple[Images, Labels]:
        """All images in file order, the mirror images after the others.

        Args:
            resolution: R, a multiple of 8; each pixel is repeated R/8 times in both directions.
            channels: C, 1 or 3; the grey channel is repeated.

        Returns:
            images (N, C, R, R) uint8, floor(255 v / 16 + 0.5) of the grey values v in 0..16; labels (N,) int64.

        Raises:
            UsageError: resolution, channels or expected count that cannot be had.
            CorruptData: scikit-learn's file holds other values than 0..16.
        """
        if resolution < DIGITS_RESOLUTION or resolution % DIGITS_RESOLUTION:
            raise UsageError(f"{self.name}: resolution {resolution} is not a positive multiple of {DIGITS_RESOLUTION}")
        if channels not in (1, 3):
            raise UsageError(f"{self.name}: channels must be 1 or 3, not {channels}")
        from sklearn.datasets import load_digits  # heavy, and not needed once the shards exist

        bunch = load_digits()
        grey = np.asarray(bunch.images, dtype=np.float64)
        if grey.min() < 0 or grey.max() > DIGITS_LEVELS:
            raise CorruptData(f"{self.name}: grey values outside 0..{DIGITS_LEVELS} in scikit-learn's digits")
        images = np.floor(255 * grey / DIGITS_LEVELS + 0.5).astype(np.uint8)[:, None]
        labels = np.asarray(bunch.target, dtype=np.int64)
        if self.mirrored:
            images = np.concatenate([images, images[..., ::-1]])
            labels = np.concatenate([labels, labels])
        if self.count is not None and len(images) != self.count:
            raise UsageError(f"{self.name}: {self.count} images expected, but there are {len(images)}; correct `count`")
        factor = resolution // DIGITS_RESOLUTION
        images = images.repeat(factor, axis=2).repeat(factor, axis=3).repeat(channels, axis=1)
        return np.ascontiguousarray(images), labels

    def missing_message(self, folder: Path | None = None) -> str:
        """Why the shards are not there; for an embedded source only a read-only folder can be the reason."""
        return f"{self.name}: no prepared shards{_where(folder)}"


class ExternalSource:
    """A data set that no dependency ships: it is read from shards that the user has prepared.

    Args:
        count: number of images expected, None where it is not known.
    """

    embedded = False
    name = "external"
    title = "an external data set"
    num_classes = 0

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.options: dict[str, bool | int | str] = {}

    def images(self, resolution: int, channels: int) -> tuple[Images, Labels]:
        """Refuses: the images are not on this machine unless somebody prepared shards of them.

        Raises:
            MissingPrerequisite: always; says what is missing and where prepared shards are looked for.
        """
        raise MissingPrerequisite(self.missing_message(Path("DATA") / folder_name(self.name, resolution, channels)))

    def missing_message(self, folder: Path | None = None) -> str:
        """What is missing, where it is looked for and how to make it, in one line."""
        number = "all images" if self.count is None else f"{self.count:,} images"
        return (
            f"{self.name}: {self.title} ({number}) does not ship with this package; no prepared shards{_where(folder)} "
            "(a folder with manifest.json and its tar shards, written by repro.data.shards.write_shards)"
        )


class Cifar10(ExternalSource):
    """CIFAR-10's training set: 50,000 images of 32x32, batches 1-5 in file order, 10 classes.

    Args:
        count: number of images expected.
    """

    name = "cifar10"
    title = "the CIFAR-10 training set"
    num_classes = 10

    def __init__(self, count: int | None = 50000) -> None:
        super().__init__(count)


class FFHQ(ExternalSource):
    """FFHQ: 70,000 face images, 1024x1024 resized by Lanczos; unlabelled.

    Args:
        count: number of images expected.
    """

    name = "ffhq"
    title = "FFHQ, resized by Lanczos,"

    def __init__(self, count: int | None = 70000) -> None:
        super().__init__(count)


class AFHQv2(ExternalSource):
    """AFHQv2: animal faces resized by Lanczos; unlabelled here, as in Karras et al. 2022.

    Args:
        count: number of images expected. The paper's number is not known (about 15.8 thousand are distributed, and
            whether the test split was used is not said), so that None takes any.
    """

    name = "afhqv2"
    title = "AFHQv2, resized by Lanczos,"

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count)


class ImageNet(ExternalSource):
    """ImageNet's training set, cropped to the centre and resized by Lanczos; the class is the rank of the folder.

    Args:
        count: number of images expected.
    """

    name = "imagenet"
    title = "the ImageNet (ILSVRC 2012) training set, centre-cropped,"
    num_classes = 1000

    def __init__(self, count: int | None = 1281167) -> None:
        super().__init__(count)


def folder_name(name: str, resolution: int, channels: int) -> str:
    """Name of the folder of prepared shards below the data folder, for example `digits-8x3`."""
    return f"{name}-{resolution}x{channels}"


def _where(folder: Path | None) -> str:
    return "" if folder is None else f" in {folder}"

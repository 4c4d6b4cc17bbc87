"""Data sources: where images come from before they are shards.

A source has the attributes `name` (also the first part of its folder's name), `num_classes` (0: unlabelled),
`count` (images expected, None where it is not known), `embedded` (ships with a dependency), `options` (what the
images depend on beside their resolution) and `form` (what is stored: `pixels`, or latents as `repro.data.encoders`
names them), and a method `images(resolution, channels)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from repro.data.members import Member, images_of, label_members, read_member
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

    @property
    def form(self) -> str: ...

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
    form = "pixels"
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
    """A data set that no dependency ships: it is read from shards that `repro data prepare` has written.

    Args:
        count: number of images expected, None where it is not known.
    """

    embedded = False
    form = "pixels"
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
            "(a folder with manifest.json and its tar shards, written by `repro data prepare`; "
            "`repro data list` says where to obtain the data)"
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


class ImageFiles(ExternalSource):
    """A data set that is prepared from a folder or zip of image files.

    Args:
        count: number of images expected, None where it is not known.
        crop: how an image becomes square, see `repro.data.images.CROP_NAMES`.
    """

    default_resolution: int | None = 64  # where the papers use one

    def __init__(self, count: int | None, crop: str) -> None:
        super().__init__(count)
        self.crop = crop
        self.options = {"crop": crop}

    def select(self, source: Path, members: Sequence[Member]) -> list[Member]:
        """The images of this data set among the files of a source, in order, with their classes.

        Raises:
            CorruptData: classes are missing, or a list that the selection needs.
        """
        return label_members(source, members, self.num_classes)


class FFHQ(ImageFiles):
    """FFHQ: 70,000 face images, 1024x1024 resized by Lanczos; unlabelled.

    Args:
        count: number of images expected.
    """

    name = "ffhq"
    title = "FFHQ, resized by Lanczos,"

    def __init__(self, count: int | None = 70000) -> None:
        super().__init__(count, "resize")


class AFHQv2(ImageFiles):
    """AFHQv2: animal faces resized by Lanczos; unlabelled here, as in Karras et al. 2022.

    Args:
        count: number of images expected. The paper's number is not known (about 15.8 thousand are distributed, and
            whether the test split was used is not said), so that None takes any.
    """

    name = "afhqv2"
    title = "AFHQv2, resized by Lanczos,"

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count, "resize")


class CelebA(ImageFiles):
    """CelebA's training split: 162,770 aligned face images, the central 128x128 resized; unlabelled (U-ViT).

    Args:
        count: number of images expected.
    """

    name = "celeba"
    title = "CelebA's training split, aligned and cropped,"
    partition_name = "list_eval_partition.txt"

    def __init__(self, count: int | None = 162770) -> None:
        super().__init__(count, "celeba")

    def select(self, source: Path, members: Sequence[Member]) -> list[Member]:
        """The images that the official list, in the source or beside it, gives to partition 0."""
        listed = next((m.name for m in members if PurePosixPath(m.name).name == self.partition_name), None)
        beside = source.parent / self.partition_name
        if listed is not None:
            text = read_member(source, listed)
        elif beside.is_file():
            text = beside.read_bytes()
        else:
            raise MissingPrerequisite(f"{self.name}: no {self.partition_name} in {source} or beside it")
        pairs = (line.split() for line in text.decode("utf-8", "replace").splitlines())
        training = {pair[0] for pair in pairs if len(pair) == 2 and pair[1] == "0"}
        chosen = [m for m in images_of(members) if PurePosixPath(m.name).name in training]
        missing = sorted(training - {PurePosixPath(m.name).name for m in chosen})
        if missing:
            raise CorruptData(f"{source}: {missing[0]} of {self.partition_name} is missing ({len(missing)} in all)")
        return chosen


class ImageNet(ImageFiles):
    """ImageNet's training set (ILSVRC2012): 1,281,167 images, 1,000 classes by sorted folder name.

    Args:
        count: number of images expected.
        crop: `dhariwal` (EDM2, DiT, U-DiT, U-ViT) or `center-crop` (EDM): they share no image.
        num_classes: class folders expected.
    """

    title = "ImageNet's training set"

    def __init__(self, count: int | None = 1281167, crop: str = "dhariwal", num_classes: int = 1000) -> None:
        super().__init__(count, crop)
        self.num_classes = num_classes
        self.name = f"imagenet-{crop}"


class ImageFolder(ImageFiles):
    """Any folder or zip of images that a user brings.

    Args:
        count: number of images expected, None for any.
        crop: how an image becomes square.
        num_classes: class folders expected, 0 for an unlabelled set.
        name: first part of its folder's name.
    """

    title = "a folder of images"
    default_resolution = None

    def __init__(
        self, count: int | None = None, crop: str = "center-crop", num_classes: int = 0, name: str = "folder"
    ) -> None:
        super().__init__(count, crop)
        self.num_classes = num_classes
        self.name = name


class Coco(ImageFiles):
    """MS-COCO 2014: images with captions, 82,783 for training and 40,504 for validation (U-ViT).

    Args:
        count: number of images expected.
        split: `train2014` or `val2014`.
    """

    title = "MS-COCO 2014"
    default_resolution = 256

    def __init__(self, count: int | None = 82783, split: str = "train2014") -> None:
        super().__init__(count, "center-crop")
        self.split = split
        self.name = f"coco-{split}"

    def select(self, source: Path, members: Sequence[Member]) -> list[Member]:
        """Images whose name names the split, in order of name, hence of COCO's image number."""
        return [m for m in images_of(members) if PurePosixPath(m.name).name.startswith(f"COCO_{self.split}_")]


class Latents(ExternalSource):
    """Latents of another data set, through a VAE, as a paper's pipeline stores them.

    Args:
        base: name of the image set, such as `imagenet-dhariwal`.
        form: `edm2` (mean and standard deviation), `dit` (one scaled sample) or `coco` (mean and log-variance).
        image_resolution: R of the images.
        num_classes: classes of the image set.
        count: number of latents expected, mirror images included.
        flip: `none`; `coin`: one frozen coin an image; `both`: mirror images behind the others.
        text: with the text features of captions.
    """

    title = "a set of latents"

    def __init__(
        self,
        base: str,
        form: str,
        image_resolution: int,
        num_classes: int = 0,
        count: int | None = None,
        flip: str = "none",
        text: bool = False,
    ) -> None:
        super().__init__(count)
        self.num_classes = num_classes
        self.form = form
        self.name = f"{base}-{image_resolution}-{form}" + ("" if flip == "none" else f"-flip-{flip}")
        self.options = {"latents": form, "flip": flip, "image_resolution": image_resolution}
        if text:
            self.options["text"] = "clip"


def folder_name(name: str, resolution: int, channels: int) -> str:
    """Name of the folder of prepared shards below the data folder, for example `digits-8x3`."""
    return f"{name.replace(':', '-')}-{resolution}x{channels}"


def _where(folder: Path | None) -> str:
    return "" if folder is None else f" in {folder}"

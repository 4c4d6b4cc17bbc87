"""Shards -> batches. What a training run sees at a position depends on (seed, position) and on nothing else."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.data.shards import Manifest, Shard, check_manifest, load_manifest, prepare, verify_shard
from repro.data.sources import Images, Labels, Source, folder_name
from repro.diffusion.draws import derive_seed
from repro.errors import CorruptData, MissingPrerequisite, UsageError


class Dataset:
    """A data set as an experiment uses it.

    Args:
        source: where the images come from.
        resolution: R, height and width in pixels.
        channels: C, image channels.
        label_dim: number of classes that the network is told, 0 for none.
        xflip: double the set by horizontal mirror images (Karras et al. 2022, Table 7).
    """

    UNITS = {
        "source": "source",
        "resolution": "resolution",
        "channels": "image_channels",
        "label_dim": "classes",
    }

    def __init__(
        self, source: Source, resolution: int, channels: int = 3, label_dim: int = 0, xflip: bool = False
    ) -> None:
        self.source = source
        self.resolution = resolution
        self.channels = channels
        self.label_dim = label_dim
        self.xflip = xflip

    def folder(self, data_dir: str | os.PathLike[str]) -> Path:
        """The folder of this data set's shards below `data_dir`."""
        return Path(data_dir) / folder_name(self.source.name, self.resolution, self.channels)

    def missing(self, data_dir: str | os.PathLike[str]) -> list[str]:
        """What has to be prepared by hand before `open` can work, one line each; empty for embedded sources."""
        folder = self.folder(data_dir)
        return [] if self.source.embedded or folder.is_dir() else [self.source.missing_message(folder)]

    def open(self, data_dir: str | os.PathLike[str], seed: int) -> ImageStream:
        """Find the shards below `data_dir`, prepare them first if the source is embedded, and read them.

        Args:
            data_dir: folder that holds a folder of shards for each prepared set.
            seed: training seed; the order of the images follows from it.

        Raises:
            MissingPrerequisite: a set that does not ship with this package has not been prepared.
            CorruptData: a shard or the manifest is not what it should be; the message names the file.
            UsageError: `label_dim` does not match the data.
        """
        if self.label_dim not in (0, self.source.num_classes):
            raise UsageError(
                f"label_dim {self.label_dim} does not match the {self.source.num_classes} classes of "
                f"{self.source.name}; use {self.source.num_classes or 'none'} or 0"
            )
        folder = self.folder(data_dir)
        if self.source.embedded:
            manifest = prepare(self.source, self.resolution, self.channels, folder)
        elif missing := self.missing(data_dir):
            raise MissingPrerequisite(missing[0])
        else:
            manifest = load_manifest(folder)
        check_manifest(manifest, self.source, self.resolution, self.channels, folder)
        images, labels = read_shards(folder, manifest)
        return ImageStream(images, labels, manifest, seed, self.xflip, labelled=self.label_dim > 0)


class ImageStream:
    """A data set in memory, and the order in which a trajectory sees it.

    Args:
        images: (N, C, R, R) uint8, in file order.
        labels: (N,) int64.
        manifest: what the images were checked against.
        seed: training seed.
        xflip: images N .. 2N-1 are the mirror images of images 0 .. N-1.
        labelled: whether batches carry labels.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, manifest: Manifest, seed: int, xflip: bool = False, labelled: bool = True
    ) -> None:
        self.manifest = manifest
        self.manifest_sha256 = manifest.sha256
        self.size = len(images) * (2 if xflip else 1)
        self.seed = seed
        self._images = images
        self._labels = labels
        self._labelled = labelled
        # a batch may cross into the next epoch; more than two epochs are recomputed at need
        self._order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, self.size, seed))

    def batch(self, position: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Samples position .. position + count - 1 of the trajectory, counted in images from its start.

        Returns:
            images (count, C, R, R) uint8; labels (count,) int64, or None without labels.

        Raises:
            ValueError: a negative position or count.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position {position} and count {count} must not be negative")
        index = torch.from_numpy(self.indices(position, count))
        number = len(self._images)
        mirrored = index >= number
        index = index % number
        images = self._images[index]
        if bool(mirrored.any()):
            images[mirrored] = images[mirrored].flip(-1)
        return images, self._labels[index] if self._labelled else None

    def indices(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """(count,) int64 in 0..size-1: which image each position shows. Every epoch shows each image once."""
        pieces: list[npt.NDArray[np.int64]] = []
        end = position + count
        while position < end:
            epoch, offset = divmod(position, self.size)
            taken = min(end - position, self.size - offset)
            pieces.append(self._order(epoch)[offset : offset + taken])
            position += taken
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def all_images(self) -> Tensor:
        """(N, C, R, R) uint8: the prepared set in file order, without flips, for reference statistics."""
        return self._images

    def all_labels(self) -> Tensor:
        """(N,) int64: the classes of `all_images`, also where batches carry none; all 0 in an unlabelled set."""
        return self._labels


def epoch_order(size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Permutation of 0..size-1 for one epoch, keyed by (seed, epoch).

    The stable argsort of raw Philox words: neither depends on NumPy's version, as `Generator.permutation` may.
    """
    words = np.random.Philox(key=derive_seed(seed, "data-order", epoch)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def read_shards(folder: str | os.PathLike[str], manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Read every shard of a folder through webdataset, each checked against the manifest before it is decoded.

    Returns:
        images (N, C, R, R) uint8 and labels (N,) int64, in file order.

    Raises:
        CorruptData: a shard does not hold what the manifest says; the message names it.
    """
    images: list[Images] = []
    labels: list[Labels] = []
    for shard in manifest.shards:
        records = _read_shard(Path(folder), shard)
        for x, y in records:
            shape = (len(y), manifest.channels, manifest.resolution, manifest.resolution)
            if x.dtype != np.uint8 or x.shape != shape or y.dtype != np.int64 or y.ndim != 1:
                raise CorruptData(f"{shard.name} in {folder}: a record holds {x.dtype} {x.shape}, {y.dtype} {y.shape}")
        found = sum(len(y) for _, y in records)
        if found != shard.count:
            raise CorruptData(f"{shard.name} in {folder}: {found} images, {shard.count} in the manifest")
        images += [x for x, _ in records]
        labels += [y for _, y in records]
    all_labels = np.concatenate(labels)
    if manifest.num_classes:
        counts = [int((all_labels == label).sum()) for label in range(manifest.num_classes)]
        if tuple(counts) != manifest.class_counts:
            raise CorruptData(f"{folder}: the labels do not have the manifest's class counts")
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(all_labels)


def _read_shard(folder: Path, shard: Shard) -> list[tuple[Images, Labels]]:
    """The chunk records of one verified shard. Pickles inside are refused."""
    import webdataset as wds  # heavy

    # The verified bytes go in as an open stream: what is checked is what is read. And no shard list means no
    # splitting by rank: WORLD_SIZE in the environment must not change what the positions of a trajectory show.
    source = {"url": shard.name, "stream": io.BytesIO(verify_shard(folder, shard))}
    pipeline = wds.DataPipeline(
        lambda: iter([source]), wds.tariterators.tar_file_expander, wds.tariterators.group_by_keys
    )
    try:
        return [(_array(record["x.npy"]), _array(record["y.npy"])) for record in pipeline]
    except Exception as error:  # tarfile, webdataset and numpy raise many kinds
        raise CorruptData(f"{shard.name} in {folder}: unreadable ({type(error).__name__}: {error})") from error


def _array(content: bytes) -> npt.NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))

"""Shards -> batches. What a training run sees at a position depends on (seed, position) and on nothing else.

Workers, ranks and shards may be any number: they decide who reads what and when, never what is read.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.data import remote
from repro.data.contexts import class_contexts, empty_context
from repro.data.draws import caption_choices, flip_coins, posterior_noise
from repro.data.encoders import ENCODERS
from repro.data.orders import epoch_order, make_order
from repro.data.prefetch import Follow, Prefetcher, contiguous
from repro.data.reading import read_shards
from repro.data.shards import Manifest, check_manifest, load_manifest, prepare
from repro.data.sources import Source, folder_name
from repro.data.stores import MemoryStore, ShardStore, Store
from repro.errors import MissingPrerequisite, UsageError

__all__ = ["Dataset", "ImageStream", "View", "epoch_order", "read_shards"]
IN_MEMORY_BYTES = 1 << 28  # smaller sets are read whole; the batches are the same


class Dataset:
    """A data set as an experiment uses it.

    Args:
        source: where the images come from.
        resolution: R, height and width of what is stored (of latents: of the latents).
        channels: C, channels of what is stored (8 for latents that are stored as moments).
        label_dim: number of classes that the network is told, 0 for none.
        xflip: double the set by horizontal mirror images (Karras et al. 2022, Table 7).
        order: `philox` (a permutation an epoch), `window` (one that reads nearly in sequence, for remote shards), or a
            paper's own: `edm`, `edm2`, `dit`.
        window: images of a window of the order `window`.
        whole_batches: batch size, where images after an epoch's last whole batch are left out (DiT); None shows all.
        random_flip: mirror each image with probability 1/2 at each use (DiT, U-DiT and U-ViT on pixels).
        context_tokens, context_dim: tokens and width of the texts that the network is told, 0 for none. Embedded data
            have stand-ins for them, which follow from the class.
    """

    UNITS = {
        "source": "source",
        "resolution": "resolution",
        "channels": "image_channels",
        "label_dim": "classes",
        "whole_batches": "batch",
        "context_dim": "channels",
    }
    NEUTRAL = {
        "order": "philox",
        "window": 4096,
        "whole_batches": None,
        "random_flip": False,
        "context_tokens": 0,
        "context_dim": 0,
    }

    def __init__(
        self,
        source: Source,
        resolution: int,
        channels: int = 3,
        label_dim: int = 0,
        xflip: bool = False,
        order: str = "philox",
        window: int = 4096,
        whole_batches: int | None = None,
        random_flip: bool = False,
        context_tokens: int = 0,
        context_dim: int = 0,
    ) -> None:
        self.source = source
        self.resolution = resolution
        self.channels = channels
        self.label_dim = label_dim
        self.xflip = xflip
        self.order = order
        self.window = window
        self.whole_batches = whole_batches
        self.random_flip = random_flip
        self.context_tokens = context_tokens
        self.context_dim = context_dim
        if source.form != "pixels" and (xflip or random_flip):
            raise UsageError(f"{source.name}: latents are mirrored when they are prepared, not by the Dataset")

    def folder(self, data_dir: str | os.PathLike[str]) -> Path:
        """The folder of this data set's shards below `data_dir`."""
        return Path(data_dir) / folder_name(self.source.name, self.resolution, self.channels)

    def missing(self, data_dir: str | os.PathLike[str]) -> list[str]:
        """What has to be prepared by hand before `open` can work, one line each; empty for embedded sources."""
        folder = self.folder(data_dir)
        return [] if self.source.embedded or folder.is_dir() else [self.source.missing_message(folder)]

    def open(self, data_dir: str | os.PathLike[str], seed: int, workers: int = 0) -> ImageStream:
        """Find the shards below `data_dir`, prepare them first if the source is embedded, and open them.

        Args:
            data_dir: folder that holds a folder of shards for each prepared set.
            seed: training seed; the order of the images follows from it.
            workers: threads that read ahead; they move no number (`ImageStream.read_ahead` for a rank's slices).

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
        stream = ImageStream.over(self._store(folder, manifest), manifest, seed, self.view())
        if self.context_tokens and not self.source.embedded:
            stream.empty_context = torch.from_numpy(empty_context(folder, manifest))
        if workers:
            stream.read_ahead(workers)
        return stream

    def view(self) -> View:
        """How this data set's images are shown."""
        return View(
            xflip=self.xflip,
            labelled=self.label_dim > 0,
            order=self.order,
            window=self.window,
            whole_batches=self.whole_batches,
            random_flip=self.random_flip,
            form=self.source.form,
            context_shape=(self.context_tokens, self.context_dim) if self.context_tokens else None,
            stand_in=self.source.embedded,
        )

    def _store(self, folder: Path, manifest: Manifest) -> Store:
        location = remote.location(folder)
        if location is not None:
            if self.order != "window":
                raise UsageError(
                    f"{folder}: its shards are remote and are read in sequence; bind Dataset.order = 'window', or "
                    "prepare them from that place for any order"
                )
            return remote.RemoteStore(location, manifest, self.window)
        if manifest.context_dtype or manifest.count * manifest.form.bytes > IN_MEMORY_BYTES:
            return ShardStore(folder, manifest)
        return MemoryStore(*read_shards(folder, manifest))


@dataclasses.dataclass(frozen=True)
class View:
    """How the images of a store are shown: see `Dataset`; `form` names the encoder of what is stored."""

    xflip: bool = False
    labelled: bool = True
    order: str = "philox"
    window: int = 4096
    whole_batches: int | None = None
    random_flip: bool = False
    form: str = "pixels"
    context_shape: tuple[int, int] | None = None
    stand_in: bool = False


class ImageStream:
    """A data set, and the order in which a trajectory sees it.

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
        self._set_up(MemoryStore(images, labels), manifest, seed, View(xflip, labelled))

    @classmethod
    def over(cls, store: Store, manifest: Manifest, seed: int, view: View) -> ImageStream:
        """A stream over any store."""
        stream = cls.__new__(cls)
        stream._set_up(store, manifest, seed, view)
        return stream

    def _set_up(self, store: Store, manifest: Manifest, seed: int, view: View) -> None:
        self.manifest = manifest
        self.manifest_sha256 = manifest.sha256
        self.size = store.count * (2 if view.xflip else 1)
        self.seed = seed
        self.view = view
        self.encoder = ENCODERS[view.form]()
        self._store = store
        self._order = make_order(view.order, self.size, seed, view.window, view.whole_batches)
        self._ahead: Prefetcher | None = None
        self.empty_context: Tensor | None = None

    def batch(self, position: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Samples position .. position + count - 1 of the trajectory, counted in images from its start.

        Returns:
            images (count, C, R, R) uint8, or latents (count, 4, h, w) float32 as the network sees them; labels (count,)
            int64, or None without labels.

        Raises:
            ValueError: a negative position or count.
            CorruptData: what was read is not what was prepared; names shard and member.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position {position} and count {count} must not be negative")
        return self._compute(position, count) if self._ahead is None else self._ahead.get(position, count)

    def read_ahead(self, workers: int, follow: Follow = contiguous) -> None:
        """Let `workers` threads read what is asked for next; 0 ends that. Batches are the same for any number.

        Args:
            workers: threads.
            follow: (position, count) of a request -> those of the next; `repro.data.prefetch.rank_slices` for a rank.
        """
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = Prefetcher(self._compute, workers, follow) if workers > 0 else None

    def contexts(self, position: int, count: int) -> Tensor:
        """One caption's features for each of the images that `batch` shows there, chosen anew at each use.

        Returns:
            (count, tokens, width) float32.

        Raises:
            UsageError: the set has no captions.
        """
        index = self.indices(position, count) % self._store.count
        if self.view.stand_in and self.view.context_shape:
            labels = self._store.labels().numpy()[index]
            return torch.from_numpy(class_contexts(labels, *self.view.context_shape))
        return self._store.contexts(index, caption_choices(self.seed, position, count)).to(torch.float32)

    def contexts_of(self, seeds: Sequence[int]) -> Tensor:
        """Texts to generate images from, (n, tokens, width) float32: of seed s one caption of image s mod N, which one
        follows from the stream's seed and s; of stand-ins that of class s mod classes.

        Raises:
            UsageError: the set has no captions.
        """
        if self.view.stand_in and self.view.context_shape:
            classes = int(self._store.labels().max()) + 1
            return torch.from_numpy(class_contexts(np.array(seeds) % classes, *self.view.context_shape))
        choices = np.array([caption_choices(self.seed, seed, 1)[0] for seed in seeds], dtype=np.int64)
        return self._store.contexts(np.array(seeds) % self._store.count, choices).to(torch.float32)

    def indices(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """(count,) int64 in 0..size-1: which image each position shows; those from N on are mirror images."""
        return self._order.indices(position, count)

    def all_images(self) -> Tensor:
        """(N, C, R, R): the prepared set in file order, without flips; for large sets see `image_batches`."""
        if isinstance(self._store, MemoryStore):
            return self._store.images
        return self._store.take(np.arange(self._store.count))[0]

    def image_batches(self, count: int) -> Iterator[Tensor]:
        """The prepared set in file order, without flips, `count` images at a time: reference statistics of any set."""
        for start in range(0, self._store.count, count):
            yield self._store.take(np.arange(start, min(start + count, self._store.count)))[0]

    def all_labels(self) -> Tensor:
        """(N,) int64: the classes of `all_images`, also where batches carry none; all 0 in an unlabelled set."""
        return self._store.labels()

    def _compute(self, position: int, count: int) -> tuple[Tensor, Tensor | None]:
        index = self.indices(position, count)
        number = self._store.count
        mirrored = index >= number
        if self.view.random_flip:
            mirrored = mirrored ^ flip_coins(self.seed, position, count)
        images, labels = self._store.take(index % number)
        if mirrored.any():
            where = torch.from_numpy(mirrored)
            images[where] = images[where].flip(-1)
        if self.view.form != "pixels":
            shape = (count, images.shape[1] // 2, *images.shape[2:])
            noise = posterior_noise(self.seed, position, shape) if self.encoder.noisy else None
            images = self.encoder.encode(images, noise)
        return images, labels if self.view.labelled else None

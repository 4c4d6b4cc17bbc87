"""Sets of images on disk, read in batches: folders, zips, shards, npz batches."""

from __future__ import annotations

import dataclasses
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.data.manifest import MANIFEST_NAME, load_manifest
from repro.data.stream import read_shards
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics.formats import NpzImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
LOSSY = (".jpg", ".jpeg", ".webp")
BATCH = 250


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    name: for messages; count: how many; read: batches of a size in a fixed order, uint8 (n, 1 or 3, H, W);
    notes: what a reader should know of them.
    """

    name: str
    count: int
    read: Callable[[int], Iterator[Tensor]]
    notes: tuple[str, ...] = ()

    def batches(self, size: int = BATCH, limit: int | None = None) -> Iterator[Tensor]:
        """Batches of `size`, the last one smaller, of `limit` random images in their order (None: of all).

        Which they are follows from the two numbers alone, as in the published tools of EDM and EDM2 at seed 0: the
        first of a sorted folder would be those of a few classes.

        Raises:
            CorruptData: an unreadable image, or images of different sizes; names the first.
        """
        waiting: Tensor | None = None
        for images in self._chosen(size, limit):
            waiting = images if waiting is None else torch.cat([waiting, images])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if waiting is not None and len(waiting):
            yield waiting

    def _chosen(self, size: int, limit: int | None) -> Iterator[Tensor]:
        """Of each batch that is read the images that are chosen, which may be none."""
        chosen = torch.ones(self.count, dtype=torch.bool)
        if limit is not None:
            order = np.arange(self.count)
            np.random.RandomState(0).shuffle(order)
            chosen[torch.from_numpy(order[limit:])] = False
        start = 0
        shape: tuple[int, ...] | None = None
        for batch in self.read(size):
            if shape is not None and tuple(batch.shape[1:]) != shape:
                raise CorruptData(f"{self.name}: images of {shape} and of {tuple(batch.shape[1:])} (C, H, W)")
            shape = tuple(batch.shape[1:])
            of_batch = chosen[start : start + len(batch)]
            batch = batch[: len(of_batch)]
            yield batch if of_batch.all() else batch[of_batch]
            start += len(batch)
            if not chosen[start:].any():
                return


def open_images(path: Path) -> ImageSet | None:
    """The images of a folder, a zip, a folder of shards or a tar of kept samples; None where `path` is none of these.

    Raises:
        UsageError: no image in it.
        CorruptData: a damaged zip or shards that are not what their manifest says.
    """
    if path.is_dir():
        return _shards(path) if (path / MANIFEST_NAME).is_file() else _folder(path)
    if path.suffix == ".zip" and path.is_file():
        return _zip(path)
    if path.suffix == ".tar" and path.is_file():
        return _tar(path)
    return None


def from_npz(images: NpzImages) -> ImageSet:
    """The images of an npz file (`arr_0`)."""
    return ImageSet(str(images.path), len(images), images.batches)


def check_count(images: ImageSet, minimum: int = 2) -> None:
    """Raise UsageError for fewer images than a distance needs."""
    if images.count < minimum:
        raise UsageError(
            f"{images.name}: {images.count} image{'s' * (images.count != 1)}, {minimum} or more are needed"
        )


def _folder(path: Path) -> ImageSet:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return _listed(path, [str(f) for f in files], lambda name: Path(name).read_bytes())


def _zip(path: Path) -> ImageSet:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CorruptData(f"{path}: not a whole zip file ({error})") from error
    names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES)

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise CorruptData(f"{path}: {name} is damaged ({error})") from error

    return _listed(path, names, read)


def _listed(path: Path, names: Sequence[str], content: Callable[[str], bytes]) -> ImageSet:
    if not names:
        raise UsageError(f"{path}: no image in it ({', '.join(SUFFIXES)})")
    lossy = [name for name in names if Path(name).suffix.lower() in LOSSY]
    notes = (f"{path}: {len(lossy)} images are stored with losses, which moves a distance",) if lossy else ()

    def read(size: int) -> Iterator[Tensor]:
        first: tuple[str, tuple[int, ...]] | None = None
        for start in range(0, len(names), size):
            batch = []
            for name in names[start : start + size]:
                image = decode(content(name), f"{name} in {path}")
                first = first or (name, tuple(image.shape))
                if tuple(image.shape) != first[1]:
                    raise CorruptData(
                        f"{path}: {name} is {tuple(image.shape)}, but {first[0]} is {first[1]} (C, H, W): "
                        "all images must be of one size"
                    )
                batch.append(image)
            yield torch.stack(batch)

    return ImageSet(str(path), len(names), read, notes)


def decode(content: bytes, where: str) -> Tensor:
    """One image file -> (3, H, W) uint8; grey ones are repeated. CorruptData for another kind."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptData(f"{where}: not a whole image ({error})") from error
    if image.mode not in ("RGB", "L", "P", "1"):
        raise CorruptData(f"{where}: an image of mode {image.mode}; only 8-bit colour or grey without alpha is scored")
    values = np.asarray(image.convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _tar(path: Path) -> ImageSet:
    """Chunk records, `x.npy` uint8 (n, C, R, R), in file order (`repro.launch.evaluate.write_samples`)."""

    def records() -> Iterator[Tensor]:
        try:
            with tarfile.open(path, "r|") as archive:
                for member in archive:
                    stream = archive.extractfile(member) if member.name.endswith(".x.npy") else None
                    if stream is not None:
                        values = np.load(io.BytesIO(stream.read()), allow_pickle=False)
                        if values.dtype != np.uint8 or values.ndim != 4:
                            raise ValueError(f"{member.name} holds {values.dtype} {values.shape}")
                        yield torch.from_numpy(values)
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise CorruptData(f"{path}: not a whole tar of samples ({error})") from error

    count = sum(len(record) for record in records())
    if not count:
        raise UsageError(f"{path}: no image in it (records with x.npy)")
    return ImageSet(str(path), count, lambda size: rebatch(records(), size))


def rebatch(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Batches of `size` from parts of any size; the last one may be smaller."""
    left: Tensor | None = None
    for part in parts:
        left = part if left is None else torch.cat([left, part])
        whole = len(left) - len(left) % size
        if whole:
            yield from torch.split(left[:whole], size)
            left = left[whole:]
    if left is not None and len(left):
        yield left


def _shards(path: Path) -> ImageSet:
    manifest = load_manifest(path)

    def shards() -> Iterator[Tensor]:
        for shard in manifest.shards:  # one in memory at a time
            part = dataclasses.replace(manifest, shards=(shard,), count=shard.count, num_classes=0, class_counts=())
            yield read_shards(path, part)[0]

    return ImageSet(str(path), manifest.count, lambda size: rebatch(shards(), size))


def require(path: Path) -> None:
    """Raise MissingPrerequisite where nothing is at `path`."""
    if not path.exists():
        raise MissingPrerequisite(f"{path}: no such file, folder or reference (`repro ref info` lists references)")

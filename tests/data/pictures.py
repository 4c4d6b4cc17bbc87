"""Small sources of images for the tests of the data pipeline."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from repro.data.manifest import Manifest
from repro.data.preparing import prepare_images
from repro.data.sources import ImageFolder


def picture(number: int, size: tuple[int, int] = (12, 10), mode: str = "RGB", form: str = "PNG") -> bytes:
    """The bytes of an image file with content of its own."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    """A grey PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, count: int = 21, classes: int = 3) -> Path:
    """A folder of PNGs, one folder a class (flat for none)."""
    for number in range(count):
        name = f"img{number:04d}.png"
        path = folder / (f"class{number % classes}/{name}" if classes else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def zipped(folder: Path, path: Path) -> Path:
    """The same files as a zip, in another order than they are read in."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def prepared(
    tmp: Path, count: int = 41, shard_images: int | None = None, resolution: int = 8, classes: int = 3
) -> tuple[Path, Manifest]:
    """A prepared set named `toy` below `tmp`/data, with its manifest."""
    source = fill(tmp / "source", count, classes)
    folder = tmp / "data" / f"toy-{resolution}x3"
    toy = ImageFolder(count, "center-crop", classes, "toy")
    return folder, prepare_images(toy, source, folder, resolution, shard_images=shard_images)


def cifar_batch(count: int = 10, seed: int = 0) -> bytes:
    """A pickled batch in CIFAR-10's form."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, "labels": list(range(count)), "batch_label": "b"}, protocol=2)


def cifar_archive(path: Path, batches: dict[str, bytes]) -> Path:
    """A tar.gz with a batch file a name."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path

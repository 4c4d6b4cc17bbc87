"""CIFAR-10's own archive, as torchvision knows it: read without running what its pickles could contain."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.sources import Images, Labels
from repro.errors import CorruptData, MissingPrerequisite

FOLDER = "cifar-10-batches-py"
IMAGES_A_BATCH = 10_000
_ALLOWED = {  # what NumPy's arrays need of a pickle, and nothing else
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def known_files() -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    """URL, name and md5 of the archive, then (name, md5) of the five training batches, in order: torchvision's own."""
    from torchvision.datasets import CIFAR10  # heavy

    return CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5, tuple((name, md5) for name, md5 in CIFAR10.train_list)


def find_archive(source: Path | None, cache: Path) -> Path:
    """The archive or its unpacked folder; downloaded to `cache` where no source is given.

    Raises:
        MissingPrerequisite: nothing there, or no network; says what is expected and where to get it.
    """
    url, filename, md5, _ = known_files()
    hint = f"expected {filename} (md5 {md5}) or its folder {FOLDER}, from {url}"
    if source is not None:
        for path in (source / filename, source / FOLDER, source):
            if path.is_file() or (path / "data_batch_1").is_file():
                return path
        found = "a folder without it" if source.is_dir() else "nothing"
        raise MissingPrerequisite(f"cifar10: {source} holds {found}; {hint}")
    path = cache / filename
    if not path.is_file():
        try:
            _download(url, path, md5)
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", None) or error
            raise MissingPrerequisite(f"cifar10: cannot download ({reason}); give --source; {hint}") from error
    return path


def read_training_set(path: Path) -> tuple[Images, Labels, str]:
    """Batches 1 to 5 in file order.

    Args:
        path: the archive, or the folder that it unpacks to.

    Returns:
        images (N, 3, 32, 32) uint8; labels (N,) int64; sha256 over the batches' names and sha256.

    Raises:
        CorruptData: an archive or batch with another md5 than torchvision expects; names both.
        MissingPrerequisite: a batch is not there.
    """
    _, _, md5, batches = known_files()
    if path.is_file():
        found = _file_digest(path, "md5")
        if found != md5:
            raise CorruptData(f"{path}: md5 {found} found, {md5} expected: not CIFAR-10's python archive, or damaged")
    contents = _read_batches(path, [name for name, _ in batches])
    images, labels, lines = [], [], []
    for (name, expected), content in zip(batches, contents, strict=True):
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise CorruptData(f"{path}: {name}: md5 {found} found, {expected} expected")
        x, y = parse_batch(content, f"{path}: {name}")
        images.append(x)
        labels.append(y)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    return np.concatenate(images), np.concatenate(labels), hashlib.sha256("".join(lines).encode()).hexdigest()


def parse_batch(content: bytes, where: str) -> tuple[Images, Labels]:
    """One pickled batch: `data` uint8 (n, 3072), planes of red, green, blue; `labels` of 0..9.

    Raises:
        CorruptData: another content; a pickle that names anything but NumPy's arrays is refused, not run.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        data, labels = batch["data"], np.asarray(batch["labels"], dtype=np.int64)
    except Exception as error:  # a foreign pickle can raise anything
        raise CorruptData(f"{where} is no CIFAR-10 batch ({type(error).__name__}: {error})") from error
    good = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (len(labels), 3072)
    if not good or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise CorruptData(f"{where} is no CIFAR-10 batch: uint8 (n, 3072) and n labels of 0..9 expected")
    return data.reshape(-1, 3, 32, 32), labels


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return super().find_class(module, name)


def _read_batches(path: Path, names: Sequence[str]) -> list[bytes]:
    try:
        if path.is_dir():
            return [(path / name).read_bytes() for name in names]
        with tarfile.open(path) as archive:
            return [_tar_member(archive, f"{FOLDER}/{name}") for name in names]
    except (FileNotFoundError, KeyError) as error:
        raise MissingPrerequisite(f"{path}: a training batch is missing ({error})") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise CorruptData(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _tar_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    stream = archive.extractfile(member) if member.isreg() else None  # never follows a link
    if stream is None:
        raise CorruptData(f"{archive.name!r}: {name} is no regular file; refused")
    return stream.read()


def _file_digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _download(url: str, path: Path, md5: str) -> None:
    """To a temporary name, checked, then renamed: a half-loaded archive is never taken for a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, open(temporary, "wb") as stream:
            while block := response.read(1 << 20):
                stream.write(block)
        found = _file_digest(temporary, "md5")
        if found != md5:
            raise CorruptData(f"{url}: md5 {found} came, {md5} expected; nothing was kept")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

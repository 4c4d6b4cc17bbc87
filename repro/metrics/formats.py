"""The files in which the field keeps reference statistics and samples, all read without running what is inside.

| kind | content |
| statistics npz (EDM, pytorch-fid, U-ViT, clean-fid) | `mu`, `sigma`; nothing says of which protocol |
| EDM2 pkl | `num_images`, and `fid`, `fd_dinov2` with `mu`, `sigma` each |
| ADM npz | `arr_0` uint8 NHWC images, perhaps `arr_1` labels, `mu`, `sigma`, `mu_s`, `sigma_s` (sFID) |
| clean-fid kid npz | `feats` |
| torch-fidelity pt | a dict `mu`, `sigma`, or a tensor of features |
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.errors import CorruptData, MissingPrerequisite
from repro.importers.numpy_records import NUMPY_GLOBALS, as_array
from repro.importers.unpickler import loads
from repro.metrics.frechet import ASYMMETRY, Array

MAX_DIM = 16_384
MAX_PICKLE_BYTES = 2**33
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class NpzImages:
    """Images in an npz file, read in batches: the array may be larger than memory, and of either order."""

    path: Path
    member: str
    shape: tuple[int, int, int, int]
    """N, H, W, C."""
    fortran: bool
    offset: int
    """Bytes of the npy header."""

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (n, C, H, W), n <= size, in file order. CorruptData where the file ends early."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            stream.seek(self.offset)
            if self.fortran:
                yield from self._transposed(stream, size)
                return
            row = math.prod(self.shape[1:])
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                values = np.frombuffer(_read(stream, count * row, self.path), np.uint8)
                yield _nchw(values.reshape(count, *self.shape[1:]))

    def _transposed(self, stream: IO[bytes], size: int) -> Iterator[Tensor]:
        """Images of an array whose first axis runs fastest: mapped from a temporary copy."""
        with tempfile.TemporaryFile() as copy:
            left = math.prod(self.shape)
            while left:
                content = _read(stream, min(left, 2**24), self.path)
                copy.write(content)
                left -= len(content)
            copy.flush()
            mapped = np.memmap(copy, np.uint8, "r", shape=self.shape, order="F")
            for start in range(0, len(self), size):
                yield _nchw(np.ascontiguousarray(mapped[start : start + size]))


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds: statistics by name ("features", "spatial", "dinov2"), features, images; sha256 of the file."""

    kind: str
    sha256: str
    statistics: dict[str, Pair]
    n: int | None = None
    features: Array | None = None
    images: NpzImages | None = None


def read_file(path: Path) -> Found:
    """Read a file of reference statistics, features or samples.

    Raises:
        MissingPrerequisite: there is no such file.
        CorruptData: it is none of the kinds above, damaged, or wants to run code; names the file.
    """
    if not path.exists():
        raise MissingPrerequisite(f"{path}: no such file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise CorruptData(f"{path}: not a regular file")
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        head = stream.read(4)
    if path.suffix == ".npz":
        return _read_npz(path, digest)
    if path.suffix == ".pkl":
        return _read_pickle(path, digest)
    if path.suffix == ".pt" and head == b"PK\x03\x04":
        return _read_torch(path, digest)
    raise CorruptData(f"{path}: not a file of statistics or samples (npz, pkl or pt)")


def check_statistics(mu: npt.NDArray[Any], sigma: npt.NDArray[Any], where: str) -> Pair:
    """A mean and a covariance as float64. CorruptData unless they are finite, belong together and are a covariance."""
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not 0 < len(mu) <= MAX_DIM:
        raise CorruptData(f"{where}: mu {mu.shape} and sigma {sigma.shape} do not belong together")
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise CorruptData(
            f"{where}: not a file of statistics (mu and sigma are {mu.dtype} and {sigma.dtype}, not numbers)"
        )
    mean, covariance = np.array(mu, dtype=np.float64), np.array(sigma, dtype=np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise CorruptData(f"{where}: statistics are not finite")
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > ASYMMETRY * np.abs(covariance).max() or np.diagonal(covariance).min() < 0:
        raise CorruptData(f"{where}: sigma is not symmetric with a diagonal >= 0, hence no covariance")
    return mean, covariance


def _read_npz(path: Path, digest: str) -> Found:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("an entry occurs twice")
            arrays = {n.removesuffix(".npy"): _array(archive, members[n]) for n in members if n != "arr_0.npy"}
            images = _images(archive, members["arr_0.npy"], path) if "arr_0.npy" in members else None
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        if isinstance(error, CorruptData):
            raise
        raise CorruptData(f"{path}: not a file of statistics ({type(error).__name__}: {error})") from error
    statistics = {}
    for name, mu, sigma in (("features", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        if (mu in arrays) != (sigma in arrays):
            raise CorruptData(f"{path}: not a file of statistics ({mu if sigma in arrays else sigma} is missing)")
        if mu in arrays:
            statistics[name] = check_statistics(arrays[mu], arrays[sigma], str(path))
    features = _features(arrays["feats"], path) if "feats" in arrays else None
    if images is not None:
        return Found("ADM reference" if statistics else "samples", digest, statistics, images=images)
    if features is not None:
        return Found("features", digest, statistics, len(features), features)
    if not statistics:
        raise CorruptData(f"{path}: not a file of statistics (no mu, sigma, arr_0 or feats)")
    return Found("statistics", digest, statistics)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array of pickled objects")
    return shape, fortran, dtype


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array of an npz, after its header agreed with the size of the entry."""
    with archive.open(info) as stream:
        shape, _, dtype = _header(stream)
        if any(n > 10**8 for n in shape) or stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} does not hold an array of shape {str(shape)[:60]}")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _images(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NpzImages:
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
        offset = stream.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or min(shape) < 1:
        raise CorruptData(f"{path}: arr_0 must be uint8 (N, H, W, 1 or 3), not {dtype} {shape}")
    if offset + math.prod(shape) != info.file_size:
        raise CorruptData(f"{path}: arr_0 is truncated")
    return NpzImages(path, info.filename, (shape[0], shape[1], shape[2], shape[3]), fortran, offset)


def _read(stream: IO[bytes], count: int, path: Path) -> bytes:
    try:
        content = stream.read(count)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise CorruptData(f"{path}: damaged ({error})") from error
    if len(content) != count:
        raise CorruptData(f"{path}: arr_0 is truncated")
    return content


def _nchw(values: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(values.transpose(0, 3, 1, 2), order="C"))


def _features(values: npt.NDArray[Any], path: Path) -> Array:
    if values.ndim != 2 or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise CorruptData(f"{path}: features must be a finite (n, d) of floats, not {values.dtype} {values.shape}")
    return np.asarray(values, dtype=np.float64)


def _read_pickle(path: Path, digest: str) -> Found:
    """EDM2's reference statistics."""
    content = _bounded(path)
    value = loads(content, NUMPY_GLOBALS, str(path))
    if not isinstance(value, dict) or not isinstance(value.get("num_images"), int):
        raise CorruptData(f"{path}: not EDM2's reference statistics (a dict with num_images, fid, fd_dinov2)")
    statistics = {}
    for name, key in (("features", "fid"), ("dinov2", "fd_dinov2")):
        if key in value:
            statistics[name] = _pair(value[key], f"{path}, {key}")
    if not statistics:
        raise CorruptData(f"{path}: neither fid nor fd_dinov2 in it")
    return Found("EDM2 statistics", digest, statistics, value["num_images"])


def _pair(value: Any, where: str) -> Pair:
    if not isinstance(value, dict) or not {"mu", "sigma"} <= set(value):
        raise CorruptData(f"{where}: not a dict with mu and sigma")
    return check_statistics(as_array(value["mu"], f"{where}.mu"), as_array(value["sigma"], f"{where}.sigma"), where)


def _read_torch(path: Path, digest: str) -> Found:
    """torch-fidelity's cache: statistics as numpy arrays in a pickle, or features as one tensor."""
    content = _bounded(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED:
                raise CorruptData(f"{path}: not a file of torch.save (one stored data.pkl)")
            inner = archive.read(entries[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CorruptData(f"{path}: damaged ({error})") from error
    if b"_rebuild_tensor" not in inner[:100]:
        pair = _pair(loads(inner, NUMPY_GLOBALS, str(path)), str(path))
        return Found("torch-fidelity statistics", digest, {"features": pair})
    try:
        tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted reader of torch raises many kinds
        raise CorruptData(f"{path}: not a tensor ({type(error).__name__})") from error
    if not isinstance(tensor, Tensor):
        raise CorruptData(f"{path}: not a tensor of features")
    features = _features(tensor.numpy(), path)
    return Found("torch-fidelity features", digest, {}, len(features), features)


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise CorruptData(f"{path}: larger than {MAX_PICKLE_BYTES} bytes")
    return path.read_bytes()

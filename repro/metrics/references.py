"""Reference statistics in one form: what they are of, by which preprocessing, of how many images, and from where.

A reference is `references/<id>.npz` in a folder of weights. It holds `mu` and `sigma` (and `mu_s`, `sigma_s` for sFID,
`real` features for precision and recall) as other tools name them, and `meta`, a JSON text. Equal references are equal
bytes, so that the sha256 of the file identifies one.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.files import make_folder, write_atomic
from repro.metrics.backends import BACKENDS
from repro.metrics.formats import Pair, check_statistics
from repro.metrics.weights import StrPath, file_sha256, search_folders

SCHEMA_VERSION = 1
FOLDER = "references"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ARRAYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of real images.

    id: name in the store; preprocessing: "tf1", "legacy_pytorch", "clean", "dinov2" or "digits"; n: images, None where
    the source does not say; resolution: (height, width) in pixels or None; source, source_sha256: what it was made of;
    statistics: "features" and perhaps "spatial" -> (mu, sigma); real: (m, d) float32 features of real images, or None.
    """

    id: str
    preprocessing: str
    n: int | None
    resolution: tuple[int, int] | None
    source: str
    source_sha256: str
    statistics: dict[str, Pair]
    real: npt.NDArray[np.float32] | None = None

    @property
    def dim(self) -> int:
        return len(self.statistics["features"][0])

    def describe(self) -> dict[str, Any]:
        """The facts about it, without the arrays."""
        return {
            "id": self.id,
            "preprocessing": self.preprocessing,
            "n": self.n,
            "resolution": list(self.resolution) if self.resolution else None,
            "dim": self.dim,
            "statistics": sorted(self.statistics),
            "real_features": None if self.real is None else len(self.real),
            "source": self.source,
            "source_sha256": self.source_sha256,
        }


def preprocessings() -> list[str]:
    """All kinds of preprocessing that a reference may be of."""
    return list(dict.fromkeys(backend.preprocessing for backend in BACKENDS.values()))


def check(reference: Reference) -> None:
    """Raise UsageError for an id or a preprocessing that cannot be."""
    if not _ID.fullmatch(reference.id):
        raise UsageError(f"{reference.id!r} is no id: letters, digits, dot, dash and underscore, at most 100")
    if reference.preprocessing not in preprocessings():
        raise UsageError(f"no preprocessing {reference.preprocessing!r}; there are {', '.join(preprocessings())}")


def save(reference: Reference, weights_dir: StrPath | None = None) -> Path:
    """Write a reference into the first folder of weights. One of the same id and content is left alone.

    Raises:
        UsageError: another reference has this id.
    """
    check(reference)
    path = make_folder(search_folders(weights_dir)[0] / FOLDER) / f"{reference.id}.npz"
    content = to_bytes(reference)
    if path.exists():
        if path.read_bytes() == content:
            return path
        raise UsageError(f"{path}: another reference has this id; remove it or give --id")
    write_atomic(path, content)
    return path


def to_bytes(reference: Reference) -> bytes:
    """The file of a reference; equal references give equal bytes."""
    meta = {**reference.describe(), "schema_version": SCHEMA_VERSION}
    arrays: dict[str, npt.NDArray[Any]] = {"meta": np.array(json.dumps(meta, sort_keys=True))}
    for name, pair in reference.statistics.items():
        arrays |= dict(zip(_ARRAYS[name], pair, strict=True))
    if reference.real is not None:
        arrays["real"] = reference.real
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def find(name: str, weights_dir: StrPath | None = None) -> Path | None:
    """The file of a reference id; None if no folder has it."""
    if not _ID.fullmatch(name):
        return None
    paths = (folder / FOLDER / f"{name}.npz" for folder in search_folders(weights_dir))
    return next((path for path in paths if path.is_file()), None)


def load(name: str, weights_dir: StrPath | None = None) -> tuple[Reference, str]:
    """A reference by its id, and its sha256. MissingPrerequisite where there is none."""
    path = find(name, weights_dir)
    if path is None:
        raise MissingPrerequisite(f"no reference {name!r} in {search_folders(weights_dir)[0] / FOLDER}")
    return read(path), file_sha256(path)


def read(path: Path) -> Reference:
    """Read a reference's file. CorruptData if it is not one; names it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            arrays = {name: archive[name] for name in archive.files if name != "meta"}
        if meta["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema {meta['schema_version']}")
        statistics = {
            name: check_statistics(arrays[mu], arrays[sigma], str(path))
            for name, (mu, sigma) in _ARRAYS.items()
            if mu in arrays
        }
        reference = Reference(
            id=meta["id"],
            preprocessing=meta["preprocessing"],
            n=meta["n"],
            resolution=(meta["resolution"][0], meta["resolution"][1]) if meta["resolution"] else None,
            source=meta["source"],
            source_sha256=meta["source_sha256"],
            statistics=statistics,
            real=arrays.get("real"),
        )
        check(reference)
        if reference.describe() != {key: value for key, value in meta.items() if key != "schema_version"}:
            raise ValueError("its description does not fit its arrays")
    except CorruptData:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json raise many kinds for a damaged file
        raise CorruptData(f"{path}: not a reference of repro ({type(error).__name__}: {error})") from error
    return reference


def is_reference(path: Path) -> bool:
    """Whether an npz file is in our own form."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "meta" in archive.files and "mu" in archive.files
    except Exception:  # whatever it is, it is not ours
        return False


def stored(weights_dir: StrPath | None = None) -> list[Path]:
    """The files of all references, folder by folder, sorted."""
    return [path for folder in search_folders(weights_dir) for path in sorted((folder / FOLDER).glob("*.npz"))]

"""The manifest of a folder of shards: what every image and label of it must be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.index import Form
from repro.errors import CorruptData, MissingPrerequisite

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, size in bytes, sha256, number of images, and its index's sha256 if any."""

    name: str
    bytes: int
    sha256: str
    count: int
    index_sha256: str = ""

    @property
    def index_name(self) -> str:
        """The file beside it that holds its index."""
        return f"{Path(self.name).stem}.index.npy"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Args:
        name: name of the source.
        count: number of images.
        num_classes: number of classes, 0 if unlabelled.
        class_counts: images of each class, empty if unlabelled.
        resolution: R, height and width in pixels.
        channels: C, image channels.
        options: preparation options.
        shards: the tar files, in the order of their images.
        schema_version: of this file's layout.
        dtype: of the stored values, NumPy's name.
        source_sha256: sha256 over the source's files, "" where there are none.
        skipped: names of source files that could not be used and were left out.
        context_shape: shape of a caption's features, () without captions.
        context_dtype: their dtype.
    """

    name: str
    count: int
    num_classes: int
    class_counts: tuple[int, ...]
    resolution: int
    channels: int
    options: dict[str, Any]
    shards: tuple[Shard, ...]
    schema_version: int = SCHEMA_VERSION
    dtype: str = "uint8"
    source_sha256: str = ""
    skipped: tuple[str, ...] = ()
    context_shape: tuple[int, ...] = ()
    context_dtype: str = ""

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON, hence of every image and label."""
        canonical = json.dumps(manifest_json(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def form(self) -> Form:
        """What one image is in the shards."""
        shape = (self.channels, self.resolution, self.resolution)
        return Form(self.dtype, shape, self.context_dtype, tuple(self.context_shape))

    @property
    def indexed(self) -> bool:
        """Whether every shard has an index beside it."""
        return bool(self.shards) and all(shard.index_sha256 for shard in self.shards)


# Fields that came later: left out of the file, and of its digest, while they have this value.
_NEUTRAL = {"dtype": "uint8", "source_sha256": "", "skipped": (), "context_shape": (), "context_dtype": ""}
_SHARD_NEUTRAL = {"index_sha256": ""}


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """A manifest as its file has it."""
    value = dataclasses.asdict(manifest)
    value["shards"] = [_without_neutral(shard, _SHARD_NEUTRAL) for shard in value["shards"]]
    return _without_neutral(value, _NEUTRAL)


def _without_neutral(value: dict[str, Any], neutral: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if not (key in neutral and item == neutral[key])}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a folder that is not published yet. Raises OSError."""
    text = json.dumps(manifest_json(manifest), sort_keys=True, indent=1) + "\n"
    write_synced(folder / MANIFEST_NAME, text.encode())
    _sync_folder(folder)


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and validate `manifest.json` of a folder of shards. The shards themselves are not opened.

    Raises:
        MissingPrerequisite: there is no such folder, or nothing in it.
        CorruptData: the folder has files and no manifest, or one that is malformed or contradicts itself.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.parent.is_dir():
        raise MissingPrerequisite(f"{path.parent}: no such folder of prepared shards")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not any(path.parent.iterdir()):
            raise MissingPrerequisite(f"{path.parent}: empty; `repro data prepare` writes shards") from None
        raise CorruptData(f"{path.parent}: no {MANIFEST_NAME}; remove the folder and prepare the data again") from None
    except OSError as error:
        raise CorruptData(f"{path}: unreadable ({error})") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """A manifest from the content of its file. Raises CorruptData, naming `where`, if it contradicts itself."""
    try:
        return _manifest_from_json(json.loads(content))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"{where}: not a manifest of schema {SCHEMA_VERSION} ({error})") from error


def _manifest_from_json(value: Any) -> Manifest:
    """Strict reading: every field there, of its type, and consistent. Raises KeyError, TypeError or ValueError."""
    fields = {field.name for field in dataclasses.fields(Manifest)}
    if not isinstance(value, dict) or not fields - set(_NEUTRAL) <= set(value) <= fields:
        raise ValueError(f"its fields must be {', '.join(sorted(fields))}")
    if value["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {value['schema_version']!r}")
    shards = tuple(Shard(**shard) for shard in value["shards"])
    lists = {key: tuple(value[key]) for key in ("class_counts", "skipped", "context_shape") if key in value}
    manifest = Manifest(**{**value, **lists, "shards": shards})
    numbers = (manifest.count, manifest.num_classes, manifest.resolution, manifest.channels, *manifest.class_counts)
    if not all(
        type(n) is int and n >= 0
        for n in (*numbers, *manifest.context_shape, *(n for s in shards for n in (s.bytes, s.count)))
    ):
        raise ValueError("a number is not an integer >= 0")
    if not isinstance(manifest.name, str) or not isinstance(manifest.options, dict):
        raise ValueError("name or options of a wrong type")
    for dtype in (manifest.dtype, manifest.context_dtype or "uint8"):
        if np.dtype(dtype).kind not in "uif":
            raise ValueError(f"dtype {dtype!r}")
    for shard in shards:
        if not all(isinstance(text, str) for text in (shard.name, shard.sha256, shard.index_sha256)):
            raise ValueError(f"bad shard entry {shard.name!r}")
        if Path(shard.name).name != shard.name:
            raise ValueError(f"bad shard entry {shard.name!r}")
    if sum(shard.count for shard in shards) != manifest.count:
        raise ValueError("the counts of the shards do not sum to count")
    if len(manifest.class_counts) != manifest.num_classes:
        raise ValueError("class_counts does not have num_classes entries")
    if manifest.num_classes and sum(manifest.class_counts) != manifest.count:
        raise ValueError("class_counts does not sum to count")
    return manifest


def write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

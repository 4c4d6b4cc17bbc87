"""Prepared data: webdataset tar shards and the manifest that says what they must hold.

A record is a chunk of up to 250 images (`x.npy` uint8 [n, C, R, R] and `y.npy` int64 [n]), because reading costs a
constant time a record. Equal images give equal bytes: plain tar, modification times of zero, records in order.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.sources import Images, Labels, Source
from repro.errors import CorruptData, MissingPrerequisite, UsageError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
CHUNK_IMAGES = 250
SHARD_IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, size in bytes, sha256 and number of images."""

    name: str
    bytes: int
    sha256: str
    count: int


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

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON, hence of every image and label."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def prepare(source: Source, resolution: int, channels: int, out_dir: str | os.PathLike[str]) -> Manifest:
    """Prepare a source's shards in `out_dir`, unless they are there already.

    Returns:
        the manifest of `out_dir`, whoever wrote it.

    Raises:
        MissingPrerequisite: the source does not ship with this package.
        UsageError: the folder cannot be written (a full disk, say); nothing stays behind under the final name.
        CorruptData: `out_dir` holds something else.
    """
    folder = Path(out_dir)
    if folder.exists():
        manifest = load_manifest(folder)
    else:
        images, labels = source.images(resolution, channels)
        manifest = write_shards(images, labels, folder, source.name, source.num_classes, source.options)
    check_manifest(manifest, source, resolution, channels, folder)
    return manifest


def check_manifest(manifest: Manifest, source: Source, resolution: int, channels: int, folder: Path) -> None:
    """Refuse shards that were prepared from another source, with other options or at another size.

    Raises:
        CorruptData: names the folder, each difference and what was expected.
    """
    found: dict[str, Any] = dataclasses.asdict(manifest)
    wanted: dict[str, Any] = {
        "name": source.name,
        "resolution": resolution,
        "channels": channels,
        "num_classes": source.num_classes,
    }
    if source.count is not None:
        wanted["count"] = source.count
    found = {key: found[key] for key in wanted} | {key: manifest.options.get(key) for key in source.options}
    wanted |= source.options
    wrong = [f"{key} is {found[key]!r}, {wanted[key]!r} expected" for key in wanted if found[key] != wanted[key]]
    if wrong:
        raise CorruptData(f"{folder}: prepared for something else: {'; '.join(wrong)}")


def write_shards(
    images: Images,
    labels: Labels,
    out_dir: str | os.PathLike[str],
    name: str,
    num_classes: int = 0,
    options: dict[str, Any] | None = None,
) -> Manifest:
    """Write images as shards into a temporary sibling folder, then rename it to `out_dir` as a whole.

    Args:
        images: (N, C, R, R) uint8.
        labels: (N,) int64, each in 0..num_classes-1; ignored and stored as 0 if `num_classes` is 0.
        out_dir: final folder. If another process makes it first, its content is used.
        name: name of the source.
        num_classes: number of classes, 0 if unlabelled.
        options: preparation options for the manifest.

    Raises:
        UsageError: arrays of another kind, or a folder that cannot be written (then nothing is left behind).
    """
    labels = _checked_labels(images, labels, num_classes, name)
    folder = Path(out_dir)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        shards = tuple(
            _write_shard(
                temporary / f"{name}-{index:05d}.tar",
                images[start : start + SHARD_IMAGES],
                labels[start : start + SHARD_IMAGES],
            )
            for index, start in enumerate(range(0, len(images), SHARD_IMAGES))
        )
        counts = np.bincount(labels, minlength=num_classes).tolist() if num_classes else []
        manifest = Manifest(
            name=name,
            count=len(images),
            num_classes=num_classes,
            class_counts=tuple(counts),
            resolution=images.shape[2],
            channels=images.shape[1],
            options=dict(options or {}),
            shards=shards,
        )
        text = json.dumps(dataclasses.asdict(manifest), sort_keys=True, indent=1) + "\n"
        _write_synced(temporary / MANIFEST_NAME, text.encode())
        _sync_folder(temporary)
        _publish(temporary, folder)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise UsageError(f"cannot prepare {folder}: {reason} (nothing was left there)") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_manifest(folder)


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and validate `manifest.json` of a folder of shards. The shards themselves are not opened.

    Raises:
        MissingPrerequisite: there is no such folder.
        CorruptData: the folder has no manifest, or one that is malformed or contradicts itself.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.parent.is_dir():
        raise MissingPrerequisite(f"{path.parent}: no such folder of prepared shards")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptData(f"{path.parent}: no {MANIFEST_NAME}; remove the folder and prepare the data again") from None
    except (OSError, ValueError) as error:
        raise CorruptData(f"{path}: unreadable ({error})") from error
    try:
        manifest = _manifest_from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"{path}: not a manifest of schema {SCHEMA_VERSION} ({error})") from error
    return manifest


def verify_shard(folder: str | os.PathLike[str], shard: Shard) -> bytes:
    """Read one shard and compare its size and sha256 with the manifest.

    Returns:
        the verified bytes, so that what is decoded is what was checked.

    Raises:
        CorruptData: missing, shorter, longer or different; the message names the shard.
    """
    path = Path(folder) / shard.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"{path}: shard cannot be read ({error.strerror or error})") from error
    if len(content) != shard.bytes:
        raise CorruptData(f"{path}: corrupt shard: {len(content)} bytes, {shard.bytes} in the manifest")
    digest = hashlib.sha256(content).hexdigest()
    if digest != shard.sha256:
        raise CorruptData(f"{path}: corrupt shard: sha256 {digest[:12]}..., {shard.sha256[:12]}... in the manifest")
    return content


def _checked_labels(images: Images, labels: Labels, num_classes: int, name: str) -> Labels:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[2] != images.shape[3] or len(images) == 0:
        raise UsageError(f"{name}: images must be uint8 (N, C, R, R), not {images.dtype} {images.shape}")
    if num_classes == 0:
        return np.zeros(len(images), dtype=np.int64)
    if labels.shape != (len(images),) or labels.dtype != np.int64:
        raise UsageError(f"{name}: labels must be int64 ({len(images)},), not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UsageError(f"{name}: labels outside 0..{num_classes - 1}")
    return labels


def _write_shard(path: Path, images: Images, labels: Labels) -> Shard:
    """One tar file of chunk records. images: (n, C, R, R) uint8, labels: (n,) int64."""
    import webdataset as wds  # heavy

    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, compress=False, mtime=0) as writer:
        for start in range(0, len(images), CHUNK_IMAGES):
            chunk = slice(start, start + CHUNK_IMAGES)
            key = f"{path.stem}-{start // CHUNK_IMAGES:03d}"  # no dot: a key ends at its first dot
            writer.write({"__key__": key, "x.npy": _npy_bytes(images[chunk]), "y.npy": _npy_bytes(labels[chunk])})
    content = buffer.getvalue()
    _write_synced(path, content)
    return Shard(path.name, len(content), hashlib.sha256(content).hexdigest(), len(images))


def _npy_bytes(array: Images | Labels) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _write_synced(path: Path, content: bytes) -> None:
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


def _publish(temporary: Path, folder: Path) -> None:
    """Rename the finished folder; if another process was first, its folder stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        # rename refuses a folder that is not empty: whoever made it renamed it whole
        if not (folder / MANIFEST_NAME).is_file():
            raise


def _manifest_from_json(value: Any) -> Manifest:
    """Strict reading: every field there, of its type, and consistent. Raises KeyError, TypeError or ValueError."""
    fields = {field.name for field in dataclasses.fields(Manifest)}
    if not isinstance(value, dict) or set(value) != fields:
        raise ValueError(f"its fields must be {', '.join(sorted(fields))}")
    if value["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {value['schema_version']!r}")
    shards = tuple(Shard(**shard) for shard in value["shards"])
    manifest = Manifest(**{**value, "shards": shards, "class_counts": tuple(value["class_counts"])})
    numbers = (manifest.count, manifest.num_classes, manifest.resolution, manifest.channels, *manifest.class_counts)
    if not all(type(n) is int and n >= 0 for n in (*numbers, *(n for s in shards for n in (s.bytes, s.count)))):
        raise ValueError("a number is not an integer >= 0")
    if not isinstance(manifest.name, str) or not isinstance(manifest.options, dict):
        raise ValueError("name or options of a wrong type")
    for shard in shards:
        if not isinstance(shard.name, str) or Path(shard.name).name != shard.name or not isinstance(shard.sha256, str):
            raise ValueError(f"bad shard entry {shard.name!r}")
    if sum(shard.count for shard in shards) != manifest.count:
        raise ValueError("the counts of the shards do not sum to count")
    if len(manifest.class_counts) != manifest.num_classes:
        raise ValueError("class_counts does not have num_classes entries")
    if manifest.num_classes and sum(manifest.class_counts) != manifest.count:
        raise ValueError("class_counts does not sum to count")
    return manifest

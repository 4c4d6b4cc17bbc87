"""Prepared data: webdataset tar shards and the manifest that says what they must hold.

A record is a chunk of up to 250 images (`x.npy` uint8 [n, C, R, R] and `y.npy` int64 [n]), because reading costs a
constant time a record. Images with captions have `c.npy` [sum k, ...], the captions' features, and `k.npy` int64 [n],
how many each image has. Equal images give equal bytes: plain tar, modification times of zero, records in order.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.data.index import Form, build_index, index_bytes
from repro.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, write_manifest, write_synced
from repro.data.sources import Images, Labels, Source
from repro.errors import CorruptData, UsageError

__all__ = ["Manifest", "Shard", "load_manifest", "prepare", "verify_shard", "write_shards"]
CHUNK_IMAGES = 250
SHARD_IMAGES = 1000
CHUNK_BYTES = 1 << 22  # larger images come in smaller chunks
SHARD_BYTES = 1 << 26

Array = npt.NDArray[Any]


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


def check_manifest(
    manifest: Manifest, source: Source, resolution: int, channels: int, folder: Path, counted: bool = True
) -> None:
    """Refuse shards that were prepared from another source, with other options or at another size.

    `counted` False takes another count than the source's, where files were left out on purpose.

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
    if source.count is not None and counted:
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
        write_manifest(temporary, manifest)
        publish(temporary, folder)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise UsageError(f"cannot prepare {folder}: {reason} (nothing was left there)") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_manifest(folder)


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
    check_shard(content, shard, path)
    return content


def check_shard(content: bytes, shard: Shard, where: object) -> None:
    """Compare a shard's bytes with the manifest. Raises CorruptData, naming `where`."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != shard.sha256:
        raise CorruptData(f"{where}: corrupt shard: sha256 {digest[:12]}..., {shard.sha256[:12]}... in the manifest")


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
    content = shard_bytes(path.stem, images, labels, CHUNK_IMAGES)
    write_synced(path, content)
    return Shard(path.name, len(content), hashlib.sha256(content).hexdigest(), len(images))


def write_indexed_shard(path: Path, values: Array, labels: Labels, contexts: Sequence[Array] | None = None) -> Shard:
    """One tar file and the index beside it, each written under a temporary name, synced and renamed.

    Args:
        path: its final name.
        values: (n, C, R, R), any dtype.
        labels: (n,) int64.
        contexts: of each image (k, ...), or None.

    Raises:
        OSError: it cannot be written; nothing stays under the final name.
    """
    images_a_chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // max(1, values[0].nbytes)))
    content = shard_bytes(path.stem, values, labels, images_a_chunk, contexts)
    context = contexts[0] if contexts else None
    form = Form(
        values.dtype.str,
        values.shape[1:],
        context.dtype.str if context is not None else "",
        context.shape[1:] if context is not None else (),
    )
    index = index_bytes(build_index(content, form, path.name))
    digest = hashlib.sha256(index).hexdigest()
    shard = Shard(path.name, len(content), hashlib.sha256(content).hexdigest(), len(values), digest)
    for final, data in ((path.with_name(shard.index_name), index), (path, content)):
        temporary = final.with_name(f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            write_synced(temporary, data)
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
    return shard


def shard_bytes(
    stem: str, values: Array, labels: Labels, images_a_chunk: int, contexts: Sequence[Array] | None = None
) -> bytes:
    """The content of one shard: chunk records in order, equal for equal arguments."""
    import webdataset as wds  # heavy

    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, compress=False, mtime=0) as writer:
        for start in range(0, len(values), images_a_chunk):
            chunk = slice(start, start + images_a_chunk)
            key = f"{stem}-{start // images_a_chunk:03d}"  # no dot: a key ends at its first dot
            record = {"__key__": key, "x.npy": _npy_bytes(values[chunk]), "y.npy": _npy_bytes(labels[chunk])}
            if contexts is not None:
                record["c.npy"] = _npy_bytes(np.concatenate(contexts[chunk]))
                record["k.npy"] = _npy_bytes(np.array([len(c) for c in contexts[chunk]], dtype=np.int64))
            writer.write(record)
    return buffer.getvalue()


def _npy_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def publish(temporary: Path, folder: Path) -> None:
    """Rename the finished folder; if another process was first, its folder stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        # rename refuses a folder that is not empty: whoever made it renamed it whole
        if not (folder / MANIFEST_NAME).is_file():
            raise

"""Whole shards -> arrays, through webdataset."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.data.manifest import Manifest, Shard
from repro.data.shards import verify_shard
from repro.data.sources import Labels
from repro.errors import CorruptData

Array = npt.NDArray[Any]


def read_shards(folder: str | os.PathLike[str], manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Read every shard of a folder through webdataset, each checked against the manifest before it is decoded.

    Returns:
        images (N, C, R, R) of the manifest's dtype and labels (N,) int64, in file order.

    Raises:
        CorruptData: a shard does not hold what the manifest says; the message names it.
    """
    images: list[Array] = []
    labels: list[Labels] = []
    for shard in manifest.shards:
        x, y = decode_shard(verify_shard(folder, shard), shard, manifest, f"{shard.name} in {folder}")
        images.append(x)
        labels.append(y)
    all_labels = np.concatenate(labels)
    check_classes(all_labels, manifest, Path(folder))
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(all_labels)


def decode_shard(content: bytes, shard: Shard, manifest: Manifest, where: str) -> tuple[Array, Labels]:
    """The images and labels of one verified shard. Pickles inside are refused.

    Args:
        content: the tar file, verified.
        shard, manifest: what it must hold.
        where: its name, for messages.

    Raises:
        CorruptData: it holds something else.
    """
    records = _records(content, shard, where)
    for x, y in records:
        shape = (len(y), manifest.channels, manifest.resolution, manifest.resolution)
        if x.dtype != np.dtype(manifest.dtype) or x.shape != shape or y.dtype != np.int64 or y.ndim != 1:
            raise CorruptData(f"{where}: a record holds {x.dtype} {x.shape}, {y.dtype} {y.shape}")
    found = sum(len(y) for _, y in records)
    if found != shard.count or not records:
        raise CorruptData(f"{where}: {found} images, {shard.count} in the manifest")
    return np.concatenate([x for x, _ in records]), np.concatenate([y for _, y in records])


def check_classes(labels: Labels, manifest: Manifest, folder: Path) -> None:
    """Compare the labels of a whole set with the manifest. Raises CorruptData, naming the folder."""
    if not manifest.num_classes:
        return
    inside = len(labels) == 0 or (labels.min() >= 0 and labels.max() < manifest.num_classes)
    if not inside or tuple(np.bincount(labels, minlength=manifest.num_classes).tolist()) != manifest.class_counts:
        raise CorruptData(f"{folder}: the labels do not have the manifest's class counts")


def _records(content: bytes, shard: Shard, where: str) -> list[tuple[Array, Labels]]:
    """The chunk records of one verified shard."""
    import webdataset as wds  # heavy

    # The verified bytes go in as an open stream: what is checked is what is read. And no shard list means no
    # splitting by rank: WORLD_SIZE in the environment must not change what the positions of a trajectory show.
    source = {"url": shard.name, "stream": io.BytesIO(content)}
    pipeline = wds.DataPipeline(
        lambda: iter([source]), wds.tariterators.tar_file_expander, wds.tariterators.group_by_keys
    )
    try:
        return [(_array(record["x.npy"]), _array(record["y.npy"])) for record in pipeline]
    except Exception as error:  # tarfile, webdataset and numpy raise many kinds
        raise CorruptData(f"{where}: unreadable ({type(error).__name__}: {error})") from error


def _array(content: bytes) -> Array:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))

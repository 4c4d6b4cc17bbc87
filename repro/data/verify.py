"""Is a folder of shards what its manifest says, and if not, which shard and which member of it is wrong?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from repro.data import remote
from repro.data.contexts import EMPTY_NAME, empty_context
from repro.data.index import Index, build_index, member_names
from repro.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest
from repro.data.shards import CHUNK_BYTES, CHUNK_IMAGES, verify_shard
from repro.errors import CorruptData, MissingPrerequisite


def verify_folder(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Read every shard and index of a folder.

    Args:
        folder: of prepared shards.
        progress: called with images checked and images in all.

    Returns:
        one line for each thing that is wrong, naming shard and member; empty if all is well.

    Raises:
        MissingPrerequisite, CorruptData: there is no folder, or no manifest that can be read.
    """
    manifest = load_manifest(folder)
    problems: list[str] = []
    done = 0
    place = remote.location(folder)
    for shard in manifest.shards:
        problems += _verify_one(folder, shard, manifest) if place is None else _verify_far(place, shard, manifest)
        done += shard.count
        progress(done, manifest.count)
    expected = {
        MANIFEST_NAME,
        EMPTY_NAME,
        remote.PLACE_NAME,
        *(s.name for s in manifest.shards),
        *(s.index_name for s in manifest.shards),
    }
    if "empty_context_sha256" in manifest.options:
        problems += _verify_empty_context(folder, manifest)
    strays = sorted(path.name for path in folder.iterdir() if path.name not in expected)
    return problems + [f"{folder / name}: does not belong to the set" for name in strays]


def load_index(folder: Path, shard: Shard) -> Index:
    """The index beside a shard, memory-mapped after its sha256 was compared with the manifest.

    Raises:
        CorruptData: missing, or not what the manifest says.
    """
    path = folder / shard.index_name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"{path}: index cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise CorruptData(f"{path}: corrupt index: its sha256 is not the manifest's")
    index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(index) != shard.count:
        raise CorruptData(f"{path}: {len(index)} images, {shard.count} in the manifest")
    return index


def images_a_chunk(manifest: Manifest) -> int:
    """How many images one record of an indexed set holds."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // max(1, manifest.form.bytes)))


def member_of(shard: Shard, manifest: Manifest, number: int, field: str = "x.npy") -> str:
    """Name of the member that holds image `number` of a shard."""
    return f"{Path(shard.name).stem}-{number // images_a_chunk(manifest):03d}.{field}"


def _verify_one(folder: Path, shard: Shard, manifest: Manifest) -> list[str]:
    problems: list[str] = []
    index: Index | None = None
    if shard.index_sha256:
        try:
            index = load_index(folder, shard)
        except CorruptData as error:
            problems.append(str(error))
    try:
        verify_shard(folder, shard)
    except CorruptData as error:
        where = _where(folder, shard, manifest, index)
        problems.append(f"{error}{where}")
    return problems


def _verify_far(place: str, shard: Shard, manifest: Manifest) -> list[str]:
    try:
        remote.load_shard(place, shard, manifest)
    except (CorruptData, MissingPrerequisite) as error:
        return [str(error)]
    return []


def _verify_empty_context(folder: Path, manifest: Manifest) -> list[str]:
    try:
        empty_context(folder, manifest)
    except CorruptData as error:
        return [str(error)]
    return []


def _where(folder: Path, shard: Shard, manifest: Manifest, index: Index | None) -> str:
    """What is known about the place of a damage: `; member NAME is missing` or `is damaged`."""
    try:
        content = (folder / shard.name).read_bytes()
    except OSError:
        return ""
    missing = _missing_member(content, shard, manifest)
    if missing:
        return f"; member {missing} is missing or cannot be reached"
    if index is None:
        return ""
    try:
        found = build_index(content, manifest.form, shard.name)
    except CorruptData as error:
        return f"; {error}"
    if len(found) != len(index):
        return f"; {len(found)} images, {len(index)} in the index"
    wrong = np.flatnonzero(found != index)
    if not len(wrong):
        return "; no image is touched: the damage lies between members"
    number = int(wrong[0])
    field = "c.npy"
    for column, name in (("offset", "x.npy"), ("label", "y.npy"), ("digest", "x.npy")):
        if found[number][column] != index[number][column]:
            field = name
            break
    return f"; member {member_of(shard, manifest, number, field)} is damaged (image {number})"


def _missing_member(content: bytes, shard: Shard, manifest: Manifest) -> str:
    """The first member that should be there and is not, '' if all are."""
    if not shard.index_sha256:
        return ""
    fields = ("c.npy", "k.npy", "x.npy", "y.npy") if manifest.context_dtype else ("x.npy", "y.npy")
    chunk = images_a_chunk(manifest)
    names = set(member_names(content))
    for record in range(math.ceil(shard.count / chunk)):
        for field in fields:
            name = member_of(shard, manifest, record * chunk, field)
            if name not in names:
                return name
    return ""

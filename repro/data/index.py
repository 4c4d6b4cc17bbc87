"""Where each image of a shard lies, its class and its digest: a small array beside each shard, memory-mapped.

With it any image is read by one `pread`, without opening the tar, and what was read is compared with the digest before
anybody sees it: a damaged byte stops the run whenever it appears, not only at the start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.errors import CorruptData

MAX_CONTEXTS = 8  # captions an image, at most
_FIELDS: list[Any] = [
    ("offset", "<i8"),  # of the image's first byte in the shard
    ("label", "<i8"),
    ("digest", "<u8"),  # first 8 bytes of the sha256 over image and label
]
_CONTEXT_FIELDS: list[Any] = [
    ("context", "<i8"),  # offset of the image's first context
    ("contexts", "<i8"),  # how many contexts (captions) it has
    ("context_digests", "<u8", (MAX_CONTEXTS,)),  # first 8 bytes of the sha256 over each, 0 for none
]
Index = npt.NDArray[np.void]


@dataclasses.dataclass(frozen=True)
class Form:
    """What one image is in a shard: dtype and shape of its values, and shape and dtype of one context, if any."""

    dtype: str
    shape: tuple[int, ...]
    context_dtype: str = ""
    context_shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    @property
    def context_bytes(self) -> int:
        return int(np.dtype(self.context_dtype).itemsize * np.prod(self.context_shape)) if self.context_dtype else 0

    @property
    def index_dtype(self) -> np.dtype[np.void]:
        """Of one entry of the index."""
        return np.dtype(_FIELDS + (_CONTEXT_FIELDS if self.context_dtype else []))


def image_digest(image: bytes | memoryview, label: int) -> int:
    """The digest that an index keeps: what an image and its class are, in eight bytes."""
    digest = hashlib.sha256(image)
    digest.update(label.to_bytes(8, "little", signed=True))
    return int.from_bytes(digest.digest()[:8], "little")


def context_digest(context: bytes | memoryview) -> int:
    """The digest that an index keeps of one context."""
    return int.from_bytes(hashlib.sha256(context).digest()[:8], "little")


def build_index(content: bytes, form: Form, where: str) -> Index:
    """Index the records of one shard.

    Args:
        content: the whole tar file, verified.
        form: what its images must be.
        where: the shard's name, for messages.

    Returns:
        (n,) of the form's `index_dtype`, in the order of the images.

    Raises:
        CorruptData: members that are missing, unknown, unreadable or of another form.
    """
    view = memoryview(content)
    entries: list[Index] = []
    for key, members in _records(content, where).items():
        try:
            x_offset, count = _array_at(members["x.npy"], form.dtype, form.shape)
            label_offset, label_count = _array_at(members["y.npy"], "<i8", ())
            if label_count != count:
                raise ValueError(f"{count} images and {label_count} labels")
            entry = np.zeros(count, dtype=form.index_dtype)
            entry["offset"] = x_offset + form.bytes * np.arange(count)
            entry["label"] = np.frombuffer(content, "<i8", count, label_offset)
            if form.context_dtype:
                _index_contexts(entry, members, form, content)
        except (KeyError, ValueError) as error:
            raise CorruptData(f"{where}: unreadable record {key} ({type(error).__name__}: {error})") from error
        for image in entry:
            start = int(image["offset"])
            image["digest"] = image_digest(view[start : start + form.bytes], int(image["label"]))
        entries.append(entry)
    return np.concatenate(entries) if entries else np.zeros(0, dtype=form.index_dtype)


def index_bytes(index: Index) -> bytes:
    """The file beside a shard: a plain npy array."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def member_names(content: bytes) -> list[str]:
    """Names of the members of a tar, as far as it can be read."""
    names = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                names.append(member.name)
    except tarfile.TarError:
        pass
    return names


@dataclasses.dataclass(frozen=True)
class _Part:
    """One member: its bytes begin at `offset` of the shard."""

    offset: int
    content: memoryview


def _records(content: bytes, where: str) -> dict[str, dict[str, _Part]]:
    """Members by key (name up to the first dot) and field (the rest), as webdataset groups them."""
    records: dict[str, dict[str, _Part]] = {}
    view = memoryview(content)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    raise CorruptData(f"{where}: member {member.name!r} is no regular file; refused")
                key, _, field = member.name.partition(".")
                end = member.offset_data + member.size
                records.setdefault(key, {})[field] = _Part(member.offset_data, view[member.offset_data : end])
    except tarfile.TarError as error:
        raise CorruptData(f"{where}: unreadable ({type(error).__name__}: {error})") from error
    return records


def _array_at(part: _Part, dtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Offset of a npy member's first value in the shard, and its length. Raises ValueError for another form."""
    stream = io.BytesIO(part.content)
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"npy version {version}")
    found_shape, fortran, found_dtype = readers[version](stream)
    if found_dtype != np.dtype(dtype) or found_shape[1:] != shape or fortran:
        raise ValueError(f"holds {found_dtype} {found_shape}, {dtype} {('n', *shape)} expected")
    count = int(found_shape[0])
    if len(part.content) - stream.tell() != count * np.dtype(dtype).itemsize * int(np.prod(shape)):
        raise ValueError("cut")
    return part.offset + stream.tell(), count


def _index_contexts(entry: Index, members: dict[str, _Part], form: Form, content: bytes) -> None:
    """Fill in offsets and counts of ragged contexts: `k.npy` counts them an image, `c.npy` holds them all."""
    offset, total = _array_at(members["c.npy"], form.context_dtype, form.context_shape)
    counts_offset, count = _array_at(members["k.npy"], "<i8", ())
    counts = np.frombuffer(content, "<i8", count, counts_offset)
    if count != len(entry) or counts.sum() != total:
        raise ValueError(f"{total} contexts, {int(counts.sum())} counted")
    if counts.min(initial=1) < 1 or counts.max(initial=1) > MAX_CONTEXTS:
        raise ValueError(f"1 to {MAX_CONTEXTS} contexts an image expected")
    entry["contexts"] = counts
    entry["context"] = offset + form.context_bytes * (np.cumsum(counts) - counts)
    view = memoryview(content)
    for image in entry:
        for number in range(int(image["contexts"])):
            start = int(image["context"]) + number * form.context_bytes
            image["context_digests"][number] = context_digest(view[start : start + form.context_bytes])

"""The entries of a torch zip: stored, inside the file, apart from each other. Nothing is unpacked to a disk."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator

from repro.errors import CorruptData
from repro.importers.sources import Part, Source, quoted

LOCAL, CENTRAL, END, END64, LOCATOR64 = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
MAX_ENTRIES = 1_000_000
ALLOWED_FLAGS = 0x0808  # sizes after the data, names in UTF-8
SATURATED = 0xFFFFFFFF
SYMLINK = 0o120000


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stored entry: its bytes, and the CRC-32 that the archive has of them."""

    name: str
    content: Part
    crc: int

    def check(self, content: bytes | bytearray | memoryview, where: str) -> None:
        """CorruptData where the bytes are not those that were written."""
        if zlib.crc32(content) != self.crc:
            raise CorruptData(f"{where}: the entry {quoted(self.name)} is damaged (its checksum does not match)")


def read_entries(source: Source) -> dict[str, Entry]:
    """Name without the one common folder -> entry.

    Raises:
        CorruptData: no zip of the form that `torch.save` writes: compressed, encrypted, overlapping or unsafe entries,
            sizes that contradict each other, anything before, between or after that a second reader could take.
    """
    try:
        return _entries(source)
    except (struct.error, UnicodeDecodeError):
        raise CorruptData(f"{source.name}: the zip is truncated or damaged") from None


def _entries(source: Source) -> dict[str, Entry]:
    where = source.name
    count, start, end = _directory(source)
    found: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    for header in _central(source, count, start, end):
        name, size, offset, crc = header
        content = _local(source, name, size, offset, start)
        spans.append((offset, content.offset + size, name))
        if name in found:
            raise CorruptData(f"{where}: the zip has the entry {quoted(name)} twice")
        found[name] = Entry(name, content, crc)
    spans.sort()
    for (_, last, name), (first, _, other) in zip(spans, spans[1:], strict=False):
        if first < last:
            raise CorruptData(f"{where}: the entries {quoted(name)} and {quoted(other)} of the zip overlap")
    folders = {name.partition("/")[0] for name in found}
    if len(folders) != 1 or not all("/" in name for name in found):
        raise CorruptData(f"{where}: the entries of the zip do not lie in one folder: not written by torch.save")
    return {name.partition("/")[2]: entry for name, entry in found.items()}


def _directory(source: Source) -> tuple[int, int, int]:
    """(number of entries, start and end of the central directory)."""
    where, size = source.name, source.size
    if size < 22:
        raise CorruptData(f"{where}: the zip is truncated")
    at = size - 22
    signature, disk, first_disk, here, count, length, start, comment = struct.unpack("<4s4H2IH", source.read(at, 22))
    if signature != END or comment:
        raise CorruptData(f"{where}: the zip is truncated, or something follows it")
    if at >= 20 and source.read(at - 20, 4) == LOCATOR64:
        _, _, at, disks = struct.unpack("<4sIQI", source.read(size - 42, 20))
        if disks > 1 or at > size - 42 - 56 or source.read(at, 4) != END64:
            raise CorruptData(f"{where}: the zip's end record is damaged")
        _, _, _, _, disk, first_disk, here, count, length, start = struct.unpack("<4sQ2H2I4Q", source.read(at, 56))
    if disk or first_disk or here != count:
        raise CorruptData(f"{where}: a zip of several parts")
    if count > MAX_ENTRIES or count * 46 > length or start + length != at:
        raise CorruptData(f"{where}: the zip's directory of {count} entries does not lie where its end record says")
    return count, start, start + length


def _central(source: Source, count: int, start: int, end: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, size, offset of the local header, CRC-32) of every entry of the central directory."""
    where, at = source.name, start
    for _ in range(count):
        if at + 46 > end:
            raise CorruptData(f"{where}: the zip's directory is truncated")
        fields = struct.unpack("<4s6H3I5H2I", source.read(at, 46))
        signature, flags, method, crc = fields[0], fields[3], fields[4], fields[7]
        packed, size, name_length, extra_length, comment, disk = fields[8:14]
        attributes, offset = fields[15:17]
        if signature != CENTRAL or at + 46 + name_length + extra_length + comment > end:
            raise CorruptData(f"{where}: the zip's directory is damaged")
        name = source.read(at + 46, name_length).decode("utf-8")
        _check_name(where, name)
        extra = source.read(at + 46 + name_length, extra_length)
        size, packed, offset = _wide(extra, [size, packed, offset])
        if method or size != packed:
            raise CorruptData(f"{where}: the entry {quoted(name)} of the zip is compressed; torch.save stores")
        if flags & ~ALLOWED_FLAGS or disk:
            raise CorruptData(f"{where}: the entry {quoted(name)} of the zip is encrypted or split")
        if (attributes >> 16) & 0o170000 == SYMLINK:
            raise CorruptData(f"{where}: the entry {quoted(name)} of the zip is a link")
        yield name, size, offset, crc
        at += 46 + name_length + extra_length + comment
    if at != end:
        raise CorruptData(f"{where}: the zip's directory holds more than its entries")


def _check_name(where: str, name: str) -> None:
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or ":" in parts[0] or not parts[0] or ".." in parts:
        raise CorruptData(f"{where}: the zip has an entry of the name {quoted(name)!r}")


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Values of 64 bits, in the order of the specification, in place of those that say "see the extra field"."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            for index, value in enumerate(values):
                if value == SATURATED:
                    values[index] = struct.unpack_from("<Q", body)[0]
                    body = body[8:]
            break
        at += 4 + length
    return values


def _local(source: Source, name: str, size: int, offset: int, limit: int) -> Part:
    """The bytes of an entry; its own header must say what the directory says."""
    where = source.name
    if offset + 30 > limit:
        raise CorruptData(f"{where}: the entry {quoted(name)} lies outside of the zip")
    fields = struct.unpack("<4s5H3I2H", source.read(offset, 30))
    signature, flags, method, packed, own, name_length, extra_length = (*fields[:1], *fields[2:4], *fields[7:])
    start = offset + 30 + name_length + extra_length
    if start + size > limit:
        raise CorruptData(f"{where}: the entry {quoted(name)} of {size:,} bytes is longer than the file")
    if signature != LOCAL or source.read(offset + 30, name_length) != name.encode():
        raise CorruptData(f"{where}: the entry {quoted(name)} does not begin where the zip's directory says")
    own, packed = _wide(source.read(offset + 30 + name_length, extra_length), [own, packed])
    unknown = bool(flags & 0x0008) and own == packed == 0  # then they stand after the data
    if method or flags & ~ALLOWED_FLAGS or (not unknown and not own == packed == size):
        raise CorruptData(f"{where}: the entry {quoted(name)} is described in two ways")
    return Part(source, start, size)

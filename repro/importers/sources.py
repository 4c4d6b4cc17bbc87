"""Bytes of a file that may be large or hostile: opened once, read where they are needed, never mapped.

A mapping would end the process where another one cuts the file short; a read fails and is reported.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from repro.errors import CorruptData, UsageError

MAX_BYTES = 16 * 2**30
WINDOW = 2**16
CHUNK = 2**23


class Source:
    """Bytes with a length. `read` raises CorruptData where fewer are there than asked for."""

    size: int
    name: str

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, which the caller keeps within 0 and `size`."""
        raise NotImplementedError

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from `offset`."""
        buffer[:] = self.read(offset, len(buffer))


class Memory(Source):
    """Bytes in memory."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content = content
        self.size = len(content)
        self.name = name

    def read(self, offset: int, count: int) -> bytes:
        return self.content[offset : offset + count]


class Part(Source):
    """A range of another source."""

    def __init__(self, whole: Source, offset: int, size: int) -> None:
        self.whole = whole
        self.offset = offset
        self.size = size
        self.name = whole.name

    def read(self, offset: int, count: int) -> bytes:
        return self.whole.read(self.offset + offset, min(count, self.size - offset))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.whole.read_into(self.offset + offset, buffer)


class File(Source):
    """A regular file of at most `MAX_BYTES`, opened once: what is hashed, checked and used is the same.

    Raises UsageError where there is no such file, or something that is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.name = quoted(path.name)
        try:
            # Not to wait for a writer where the name is that of a pipe.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{quoted(str(path))}: cannot be read ({error.strerror})") from None
        self._status = os.fstat(self._descriptor)
        self.size = self._status.st_size
        self._start, self._window = 0, b""
        try:
            if not stat.S_ISREG(self._status.st_mode):
                raise UsageError(f"{quoted(str(path))}: not a regular file")
            if self.size > MAX_BYTES:
                raise UsageError(f"{self.name}: {self.size:,} bytes; files of up to {MAX_BYTES:,} are read")
        except UsageError:
            self.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        at = offset - self._start
        if not 0 <= at <= len(self._window) - count:
            if count > WINDOW:
                buffer = bytearray(count)
                self.read_into(offset, memoryview(buffer))
                return bytes(buffer)
            self._start, self._window, at = offset, os.pread(self._descriptor, WINDOW, offset), 0
        part = self._window[at : at + count]
        if len(part) < count:
            raise CorruptData(f"{self.name}: the file became shorter while it was read")
        return part

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done : done + CHUNK]], offset + done)
            if not count:
                raise CorruptData(f"{self.name}: the file became shorter while it was read")
            done += count

    def sha256(self, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
        """Digest of the whole file, in hex. progress: called with (bytes done, bytes)."""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, max(self.size, 1))))
        for start in range(0, self.size, len(buffer)):
            part = buffer[: min(len(buffer), self.size - start)]
            self.read_into(start, part)
            digest.update(part)
            progress(start + len(part), self.size)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """CorruptData where the file was written to since it was opened."""
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise CorruptData(f"{self.name}: the file was changed while it was read")


def quoted(text: str, limit: int = 120) -> str:
    """A name for a message: printable, on one line, cut."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."

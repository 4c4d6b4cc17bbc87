"""Files appear whole, by rename, or not at all."""

from __future__ import annotations

import errno
import json
import os
import uuid
from io import FileIO
from pathlib import Path
from typing import Any

from repro.errors import UsageError


def write_atomic(path: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename. An error leaves an existing file of that name as it was.

    Raises:
        UsageError: the disk is full or the folder cannot be written; the message names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)} (what was complete before is untouched)") from error
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is none


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of sorted, indented JSON with a closing newline."""
    write_atomic(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create a file with its whole content if and only if no file of that name exists; True if this call made it.

    A hard link to a complete temporary file is atomic on local disks, NFS and Lustre, where O_EXCL alone could show
    a reader an empty file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log. A last line that an earlier writer left torn (a full disk) is removed first.

    Raises:
        UsageError: the disk is full or the file cannot be written.
    """
    try:
        with open(path, "ab+", buffering=0) as stream:
            _drop_torn_line(stream)
            content = f"{line}\n".encode()
            while content:
                content = content[stream.write(content) :]
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error


def _drop_torn_line(stream: FileIO) -> None:
    size = stream.seek(0, os.SEEK_END)
    if not size:
        return
    stream.seek(-1, os.SEEK_END)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. For folders with one writer at a time: its owner."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises UsageError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"cannot write in the folder {path}: Permission denied")
    return path

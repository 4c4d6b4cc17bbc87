"""Files appear whole, by rename, or not at all."""

from __future__ import annotations

import errno
import json
import os
import uuid
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
        temporary.unlink(missing_ok=True)
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason} (what was complete before is untouched)") from error


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
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises UsageError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"cannot write in the folder {path}: Permission denied")
    return path

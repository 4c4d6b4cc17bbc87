"""Files of a folder or zip that a data set is made of: found, ordered, labelled, and refused where they are not safe.

Nothing is ever extracted to disk: a member is read into memory by the name that the archive lists.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from repro.errors import CorruptData, MissingPrerequisite

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"}
LABELS_NAME = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Member:
    """One file: its name in the source, with slashes, size in bytes, a stamp that changes with it, and its class."""

    name: str
    bytes: int
    stamp: int
    label: int = 0


def list_members(source: Path) -> list[Member]:
    """Every file of a folder or zip, sorted by name; hidden files and macOS's shadow files are left out.

    Raises:
        MissingPrerequisite: there is nothing at `source`.
        CorruptData: not a folder or zip; a damaged zip; a name or a link that leads outside.
    """
    if source.is_dir():
        found = _list_folder(source)
    elif source.is_file():
        found = _list_zip(source)
    else:
        raise MissingPrerequisite(f"{source}: no such folder or zip")
    return sorted((m for m in found if not _is_hidden(m.name)), key=lambda member: member.name)


def images_of(members: Iterable[Member]) -> list[Member]:
    """Those whose names end like an image's."""
    return [member for member in members if PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES]


def label_members(source: Path, members: Sequence[Member], num_classes: int) -> list[Member]:
    """Images with their classes: of `dataset.json` if there is one, else the rank of the top folder's name.

    Args:
        source: the folder or zip, for messages and for reading `dataset.json`.
        members: all files, in order.
        num_classes: classes that there must be; 0 leaves every label at 0.

    Raises:
        CorruptData: a class without images, another number of class folders, or a file without a label.
    """
    images = images_of(members)
    if num_classes == 0:
        return images
    listed = next((member for member in members if member.name == LABELS_NAME), None)
    labels = _listed_labels(source, images) if listed else None
    labels = _folder_labels(source, images, members, num_classes) if labels is None else labels
    wrong = sorted(set(labels) ^ set(range(num_classes)))
    if wrong:
        what = "has no image" if wrong[0] < num_classes else "is out of range"
        raise CorruptData(
            f"{source}: class {wrong[0]} {what}; {num_classes} classes expected, {len(set(labels))} found"
        )
    return [dataclasses.replace(image, label=label) for image, label in zip(images, labels, strict=True)]


def read_member(source: Path, name: str) -> bytes:
    """The content of one file. Raises CorruptData, naming it, where it cannot be read."""
    try:
        if source.is_dir():
            return (source / name).read_bytes()
        return _open_zip(os.fspath(source), os.getpid()).read(name)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        raise CorruptData(f"{source}: {name} cannot be read ({type(error).__name__}: {error})") from error
    except Exception as error:  # zlib.error and other decompressors' own
        raise CorruptData(f"{source}: {name} is damaged ({error})") from error


@functools.lru_cache(maxsize=2)
def _open_zip(path: str, process: int) -> zipfile.ZipFile:
    """A zip's directory is read once a process; forked processes must not share a file position."""
    return zipfile.ZipFile(path)


def _list_folder(root: Path) -> list[Member]:
    """Links are followed only to what lies within the folder."""
    real = root.resolve()
    found = []
    for folder, folders, files in os.walk(root, onerror=_refuse_folder):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(real)):
                raise CorruptData(f"{root}: {path.relative_to(root).as_posix()} is a link that leads outside; refused")
        for name in files:
            path = Path(folder) / name
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CorruptData(f"{root}: {path.relative_to(root).as_posix()} is no regular file; refused")
            found.append(Member(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return found


def _refuse_folder(error: OSError) -> None:
    raise CorruptData(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _list_zip(path: Path) -> list[Member]:
    try:
        entries = _open_zip(os.fspath(path), os.getpid()).infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CorruptData(f"{path}: no zip that can be read ({error})") from error
    found, seen = [], set()
    for entry in entries:
        if entry.is_dir():
            continue
        if not is_safe(entry.filename):
            raise CorruptData(f"{path}: member {entry.filename!r} would lie outside of its folder; refused")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise CorruptData(f"{path}: member {entry.filename!r} is a symbolic link; refused")
        if entry.filename in seen:
            raise CorruptData(f"{path}: member {entry.filename!r} is there twice; refused")
        seen.add(entry.filename)
        found.append(Member(entry.filename, entry.file_size, entry.CRC))
    return found


def is_safe(name: str) -> bool:
    """Whether a member's name stays within its archive: relative, without '..', drives or backslashes."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and ":" not in parts[0]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _listed_labels(source: Path, images: Sequence[Member]) -> list[int] | None:
    """Classes from `dataset.json`: {"labels": [[name, class], ...]}; None where it lists none."""
    where = f"{source}: {LABELS_NAME}"
    try:
        content = json.loads(read_member(source, LABELS_NAME))
        pairs = content["labels"]
        known = None if pairs is None else {str(name): label for name, label in pairs}
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptData(f"{where} is no list of labels ({type(error).__name__}: {error})") from error
    if known is None:
        return None
    labels = []
    for image in images:
        label = known.get(image.name)
        if type(label) is not int:
            raise CorruptData(f"{where} gives {image.name} the class {label!r}, an integer expected")
        labels.append(label)
    return labels


def _folder_labels(source: Path, images: Sequence[Member], members: Sequence[Member], num_classes: int) -> list[int]:
    """The rank of each image's top folder; a single folder around all class folders is looked through."""
    depth = 0
    parts = [PurePosixPath(image.name).parts for image in images]
    if parts and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts) and num_classes > 1:
        depth = 1
    if stray := [image.name for image, p in zip(images, parts, strict=True) if len(p) < depth + 2]:
        raise CorruptData(f"{source}: {stray[0]} lies in no class folder, and there is no {LABELS_NAME}")
    filled = {p[depth] for p in parts}
    folders = sorted(filled | _empty_folders(source, depth, parts))
    if empty := [folder for folder in folders if folder not in filled]:
        raise CorruptData(f"{source}: class folder {empty[0]!r} holds no image")
    if len(folders) != num_classes:
        raise CorruptData(
            f"{source}: {len(folders)} class folders found, {num_classes} expected"
            f" (first {folders[0]!r}, last {folders[-1]!r})"
            if folders
            else f"{source}: no class folders found, {num_classes} expected"
        )
    rank = {folder: number for number, folder in enumerate(folders)}
    return [rank[p[depth]] for p in parts]


def _empty_folders(source: Path, depth: int, parts: Sequence[Sequence[str]]) -> set[str]:
    """Class folders of a folder on disk, also those without images (a zip seldom lists empty ones)."""
    if not source.is_dir():
        return set()
    top = source / parts[0][0] if depth else source
    return {entry.name for entry in top.iterdir() if entry.is_dir() and not _is_hidden(entry.name)}

"""Extractor weights: looked for on this machine, downloaded where there is a network, checked by their digest."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import torch

from repro.errors import CorruptData, MissingPrerequisite
from repro.files import make_folder

StrPath = str | os.PathLike[str]
CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A published weights file.

    title: what it is; names: under which it may lie (the same content); sha256: its digest or the first digits of it
    that are published, '' where none is known: then the user must pin one; url: where it is published.
    """

    title: str
    names: tuple[str, ...]
    sha256: str
    url: str


INCEPTION = WeightsFile(
    title="Inception weights",
    names=("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    sha256="6726825d",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
DINOV2 = WeightsFile(
    title="DINOv2 ViT-L/14 weights",
    names=("dinov2_vitl14_pretrain.pth",),
    sha256="",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)
PUBLISHED = (INCEPTION, DINOV2)


def search_folders(weights_dir: StrPath | None = None) -> list[Path]:
    """Folders that are searched: --weights, else $REPRO_WEIGHTS; then torch.hub's cache. Downloads go to the first."""
    given = weights_dir or os.environ.get("REPRO_WEIGHTS")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return [Path(given), cache] if given else [cache]


def find(file: WeightsFile, weights_dir: StrPath | None = None) -> Path | None:
    """Where a weights file lies, unchecked; None if it is in none of the folders."""
    paths = (folder / name for folder in search_folders(weights_dir) for name in file.names)
    return next((path for path in paths if path.is_file()), None)


def missing_line(file: WeightsFile, weights_dir: StrPath | None = None) -> str | None:
    """None if a weights file is there; else one line with what is missing and how to get it."""
    if find(file, weights_dir):
        return None
    folder = search_folders(weights_dir)[0]
    also = f" ({', '.join(file.names[1:])} is the same)" if file.names[1:] else ""
    return (
        f"{folder / file.names[0]}: {file.title} not found; `repro doctor --download` fetches {file.url}{also}, "
        "or copy that file into this folder, or name the folder where it lies by --weights"
    )


def obtain(file: WeightsFile, sha256: str, weights_dir: StrPath | None = None) -> Path:
    """The path of a weights file whose content has the pinned digest.

    Args:
        file: which.
        sha256: pinned digest, or its first digits.
        weights_dir: --weights.

    Raises:
        MissingPrerequisite: it is not there, or no digest is pinned.
        CorruptData: the file has another digest.
    """
    path = find(file, weights_dir)
    if path is None:
        raise MissingPrerequisite(missing_line(file, weights_dir) or "")
    digest = file_sha256(path)
    if not sha256:
        raise MissingPrerequisite(
            f"{path}: no digest is pinned for {file.title}; bind extractor_sha256 = '{digest}' if you trust this file"
        )
    if not digest.startswith(sha256.lower()):
        raise CorruptData(f"{path}: sha256 {digest[:12]}..., expected {sha256}...")
    return path


def download(file: WeightsFile, weights_dir: StrPath | None = None, url: str | None = None) -> Path:
    """Fetch a weights file into the first folder, under its final name only when its digest is right.

    Raises:
        MissingPrerequisite: no network; says which file to copy where.
        CorruptData: what came is another file; nothing is kept.
    """
    folder = make_folder(search_folders(weights_dir)[0])
    path = folder / file.names[0]
    temporary = folder / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url or file.url, timeout=TIMEOUT_SECONDS) as answer, open(temporary, "wb") as out:
            while part := answer.read(CHUNK_BYTES):
                digest.update(part)
                out.write(part)
            out.flush()
            os.fsync(out.fileno())
        if not digest.hexdigest().startswith(file.sha256):
            raise CorruptData(
                f"{url or file.url}: sent a file of sha256 {digest.hexdigest()[:12]}..., expected {file.sha256}...; "
                "nothing was kept"
            )
        os.replace(temporary, path)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise MissingPrerequisite(f"cannot fetch {url or file.url} ({reason}); copy that file to {path}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """A state dict read without running what is inside. CorruptData for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's restricted reader raises many kinds
        raise CorruptData(f"{path}: not the weights of {what} ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CorruptData(f"{path}: not the weights of {what} (no state dict)")
    return dict(state)

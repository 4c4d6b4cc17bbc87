"""Folders of published weights: found on disk or fetched by their hub name, and known by their sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from repro.errors import CorruptData, MissingPrerequisite


def weights_folder(place: str, weights: str, others: Sequence[str]) -> tuple[Path, str]:
    """The folder that holds a model, and the sha256 of its weights.

    Args:
        place: a folder, or a hub name such as `stabilityai/sd-vae-ft-mse`, fetched where there is a network.
        weights: name of the weights file, always safetensors: nothing is unpickled.
        others: further files that the model needs.

    Raises:
        MissingPrerequisite: a file is missing, or the hub cannot be reached.
        CorruptData: the weights are no safetensors file.
    """
    folder = Path(place)
    if not folder.is_dir():
        folder = _fetch(place, [*others, weights])
    for name in (*others, weights):
        if not (folder / name).is_file():
            raise MissingPrerequisite(f"{folder}: no {name}; it must hold {', '.join([*others, weights])}")
    _check_header(folder / weights)
    return folder, file_sha256(folder / weights)


def file_sha256(path: Path) -> str:
    """sha256 of a file, read once as long as it is the same: weights of a decoder have hundreds of megabytes."""
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(place: str, names: Sequence[str]) -> Path:
    hint = f"{place}: no such folder, and it cannot be fetched; give a folder that holds {', '.join(names)}"
    if place.count("/") != 1:
        raise MissingPrerequisite(hint)
    try:
        from huggingface_hub import hf_hub_download

        return [Path(hf_hub_download(place, name)).parent for name in names][0]
    except Exception as error:  # no network, no such repository, no library
        raise MissingPrerequisite(f"{hint} ({type(error).__name__})") from error


def _check_header(path: Path) -> None:
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        start = stream.read(1)
    if start != b"{" or length > path.stat().st_size:
        raise CorruptData(f"{path}: no safetensors file, or cut")

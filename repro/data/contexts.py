"""The features of the empty prompt, which stand for a dropped caption: one file beside the shards."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.data.manifest import Manifest
from repro.diffusion.draws import derive_seed
from repro.errors import CorruptData

EMPTY_NAME = "empty-context.npy"


def empty_context(folder: Path, manifest: Manifest) -> npt.NDArray[Any]:
    """Features of the empty prompt, (tokens, width) float32.

    Raises:
        CorruptData: the file is missing or not what the manifest says.
    """
    path = folder / EMPTY_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"{path}: cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(content).hexdigest() != manifest.options.get("empty_context_sha256"):
        raise CorruptData(f"{path}: corrupt: its sha256 is not the manifest's")
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def class_contexts(labels: npt.NDArray[np.int64], tokens: int, width: int) -> npt.NDArray[np.float32]:
    """Stand-ins for captions where data have classes and none: fixed standard normal features of each class.

    Args:
        labels: (n,) classes.

    Returns:
        (n, tokens, width) float32.
    """
    known = {label: _features(label, tokens, width) for label in sorted(set(labels.tolist()))}
    if not known:
        return np.empty((0, tokens, width), dtype=np.float32)
    return np.stack([known[label] for label in labels.tolist()])


def _features(label: int, tokens: int, width: int) -> npt.NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=derive_seed("class context", label)))
    return generator.standard_normal((tokens, width), dtype=np.float32)

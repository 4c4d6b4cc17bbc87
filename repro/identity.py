"""Identity: the hashes of all that decides a result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from repro.config import Node, canonical

SHORT = 16
"""Hex digits of a hash in a folder name (64 bits: two of a million configurations meet with probability 3e-8)."""


def digest(value: Any) -> str:
    """sha256 (hex) of the sorted, compact JSON of a canonical value; floats as Python's shortest round-trip form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def trajectory_hash(trajectory: Node) -> str:
    """Identity of a training run: all that decides the weights at step t. Its length and what it tracks are no part."""
    return digest(canonical(trajectory))


def evaluation_hash(trajectory: Node, evaluation: Node) -> str:
    """Identity of an evaluation, which includes the trajectory's. Milestone and range are in path and record."""
    return digest({"trajectory": trajectory_hash(trajectory), "evaluation": canonical(evaluation)})

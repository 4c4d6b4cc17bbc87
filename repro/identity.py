"""Identity: the hashes of all that decides a result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SHORT = 16
"""Hex digits of a hash in a folder name (64 bits: two of a million configurations meet with probability 3e-8)."""


def digest(value: Any) -> str:
    """sha256 (hex) of the sorted, compact JSON of a canonical value; floats as Python's shortest round-trip form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def evaluation_hash(trajectory_hash: str, evaluation: Any) -> str:
    """Identity of an evaluation (in canonical form), which includes its trajectory's, which includes the seed.

    The trajectory's own is the digest of its canonical form: its length and what it tracks are no part of it.
    Milestone and range are in path and record.
    """
    return digest({"trajectory": trajectory_hash, "evaluation": evaluation})

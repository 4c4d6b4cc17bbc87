"""Common set-up: one thread a process, and no network, caches or folders of the user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["REPRO_CACHE"] = tempfile.mkdtemp(prefix="repro-cache-")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[None]:
    """What this run remembers is gone after it."""
    yield
    shutil.rmtree(os.environ["REPRO_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The suite runs on all cores by processes, not threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own folders must not reach a test."""
    for name in ("REPRO_RUNS", "REPRO_DATA", "REPRO_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)

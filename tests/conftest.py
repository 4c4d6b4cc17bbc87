"""Common set-up: one thread a process, and no network, caches or folders of the user."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes import torch here: under this setting of many images each would compile its modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers share the cache of the process that started them
    os.environ["REPRO_CACHE"] = tempfile.mkdtemp(prefix="repro-cache-")
    atexit.register(shutil.rmtree, os.environ["REPRO_CACHE"], ignore_errors=True)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The suite runs on all cores by processes, not threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own folders must not reach a test."""
    for name in ("REPRO_RUNS", "REPRO_DATA", "REPRO_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)

"""Where a number was made: versions, hardware and revision, for records and references."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from repro import assets

_PACKAGES = ("torch", "numpy", "scipy", "gin-config", "webdataset", "torch-fidelity", "safetensors", "scikit-learn")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, repro and the packages that numbers pass through."""
    found = {"python": platform.python_version()}
    for package in ("repro", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores and accelerators of this machine."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"machine": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count() or 1, "gpus": gpus}


@cache
def git_state() -> tuple[str | None, bool | None]:
    """(revision, dirty) of the clone that the package runs from; (None, None) outside one."""
    folder = assets.PACKAGE.parent
    if not (folder / ".git").exists():
        return None, None
    try:
        revision = _git(folder, "rev-parse", "HEAD").strip()
        return revision, bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )

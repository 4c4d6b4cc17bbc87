"""Lint, format and types, as a maintainer's editor would see them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_code_is_clean(name: str) -> None:
    command = COMMANDS[name]
    if not (Path(sys.executable).parent / command[0]).exists() and not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[dev]'")
    found = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_file_names_this_machine_or_a_registry() -> None:
    words = ["/" + "work/", "/" + "root/", "index" + "-url", "pypi" + ".org"]
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix in (".npz", ".pkl", ".pt", ".pth", ".safetensors", ".png") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], name

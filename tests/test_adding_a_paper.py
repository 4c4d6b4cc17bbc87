"""docs/adding-a-paper.md works as it is printed: its files are put where it says, and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import data_dir, environment

from repro import assets

ROOT = assets.PACKAGE.parent
DOCUMENT = ROOT / "docs" / "adding-a-paper.md"
CELL = "toy/table1/plain/cifar10"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The sources with the document's files in place."""
    for name in ("repro", "gin", "tables", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    places = re.findall(r"`([\w/.-]+\.(?:py|gin|toml))`[.,:]", DOCUMENT.read_text())
    blocks = re.findall(r"```(?:python|gin|toml)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    new = [name for name in places if "toy" in name]
    assert len(new) == len(blocks) == 4
    for name, content in zip(new, blocks, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    experiment = tmp_path / "repro" / "experiment.py"
    text = experiment.read_text().replace("    UDiT,\n", "    UDiT,\n    ToyNet,\n", 1)
    experiment.write_text(
        text.replace("from repro.models.udit", "from repro.models.toy import ToyNet\nfrom repro.models.udit", 1)
    )
    return tmp_path


@pytest.mark.slow
def test_the_documented_paper_runs(clone: Path) -> None:
    def repro(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "repro", *words]
        told = {**environment(), "PYTHONPATH": str(clone), "REPRO_CACHE": str(clone / "cache")}
        return subprocess.run(command, env=told, cwd=clone, capture_output=True, text=True, timeout=300)

    assert "ToyNet" in repro("show", CELL, "--scale", "mini").stdout
    done = repro("run", CELL, "--scale", "ci", "--data", str(data_dir()), "--gin", "Evaluation.num_samples = 10_000")
    assert done.returncode == 0, done.stderr
    assert re.search(r"digits FD [\d.]+", done.stdout) and "99" in done.stdout
    wrong = (
        (clone / "repro" / "models" / "toy.py").read_text().replace('"channels": "channels"', '"channels": "channel"')
    )
    (clone / "repro" / "models" / "toy.py").write_text(wrong)
    refused = repro("show", CELL, "--scale", "mini")
    assert refused.returncode == 2
    assert "ToyNet.UNITS gives channels the unit 'channel'; did you mean 'channels'?" in refused.stderr

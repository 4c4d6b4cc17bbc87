"""A real SLURM for the tests that are marked `slurm`, and a pretended one for the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fake_slurm
import pytest

from repro import assets
from repro.launch import slurm

DEV_CLUSTER = assets.PACKAGE.parent / "slurm" / "dev-cluster"


class RealSlurm:
    """The development cluster of this test process."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {**os.environ, "REPRO_SLURM": str(state)}

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`slurm/dev-cluster WORDS`."""
        command = [sys.executable, str(DEV_CLUSTER), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def node(self, name: str, what: str) -> None:
        """Lose a node (`stop`), or bring it back (`start`)."""
        assert self.call("node", name, what).returncode == 0


@pytest.fixture(scope="session")
def started_slurm() -> Iterator[RealSlurm]:
    if os.geteuid():
        pytest.skip(
            "a real SLURM needs root: run the tests in a Debian 12 container or virtual machine, as .ci/run does"
        )
    if not shutil.which("sbatch") and not os.environ.get("REPRO_INSTALL_SLURM"):
        pytest.skip("no SLURM here: `slurm/dev-cluster up` installs Debian's packages, or set REPRO_INSTALL_SLURM=1")
    state = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = RealSlurm(state)
    done = cluster.call("up")
    if done.returncode:
        cluster.call("down")
        said = f"slurm/dev-cluster up: {done.stderr}"
        if not shutil.which("sbatch") or "unshare" in done.stderr:  # no packages to be had, or no namespaces
            pytest.skip(f"{said} (a real SLURM needs Debian's packages and namespaces)")
        pytest.fail(said)
    yield cluster
    cluster.call("down")


@pytest.fixture
def real_slurm(started_slurm: RealSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealSlurm]:
    """The development cluster, on PATH, empty and whole; and emptied again."""
    monkeypatch.setenv("SLURM_CONF", f"{started_slurm.state}/slurm.conf")
    monkeypatch.setenv("PATH", f"{started_slurm.state}/bin:{os.environ['PATH']}")
    slurm.settings.cache_clear()
    yield started_slurm
    subprocess.run(["scancel", "--me"], check=False)
    slurm.settings.cache_clear()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretended SLURM on PATH; its folder."""
    folder = tmp_path / "fake"
    programs = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    slurm.settings.cache_clear()
    return folder

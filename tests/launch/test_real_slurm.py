"""Tables on a real SLURM that loses nodes, preempts and cancels: they end with what an undisturbed run gives.

Through the command line, on the project's development cluster.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import RealSlurm
from helpers import TINY, data_dir, finish, snapshot_bytes

from repro.launch.folders import trained_nimg
from repro.launch.survey import CellState, survey
from repro.results.records import read_all

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TABLE = "edm/table2"
ROWS, COLUMNS = ("e", "f"), ("cifar10-cond-vp", "cifar10-cond-ve")
CELLS = tuple(f"{TABLE}/{row}/{column}" for row in ROWS for column in COLUMNS)
BINDINGS = ("Scale.images = 60_000", "Scale.intervals = 500", *TINY[2:], "Execution.checkpoint_seconds = 0.5")
"""3,333 images in steps of 8: long enough to be hit in the middle."""


def profile(tmp_path: Path, **settings: Any) -> str:
    """A cluster profile: whole nodes, in the partition that is preempted."""
    values = {"partition": "low", "cpus": 4, "mem_gb": 1.5, "timeout": 30, "signal_delay": 30, **settings}
    lines = [f"Cluster.{key} = {value!r}" for key, value in values.items()]
    path = tmp_path / "profile.gin"
    path.write_text("\n".join([*lines, "Cluster.environment = {'OMP_NUM_THREADS': '1'}"]))
    return str(path)


def repro(tmp_path: Path, *words: str, code: int | None = 0) -> tuple[str, str]:
    """The program, in a folder of its own: (stdout, stderr). Its jobs use the compiled modules of the installation."""
    command = [sys.executable, "-m", "repro", *words, "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, (words, done)
    return done.stdout, done.stderr


def submit(tmp_path: Path, name: str, *more: str, bindings: Sequence[str] = BINDINGS, code: int = 0) -> tuple[str, str]:
    gin = [word for binding in bindings for word in ("--gin", binding)]
    words = ["submit", TABLE, "--scale", "ci", "--rows", *ROWS, "--columns", *COLUMNS, "--data", str(data_dir())]
    return repro(tmp_path, *words, "--cluster", name, *gin, *more, code=code)


def status(tmp_path: Path) -> dict[str, CellState]:
    """What `repro status` shows, without a process each time."""
    return {state.cell: state for state in survey([tmp_path / "runs"]).cells()}


def wait(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}\n{explain()}"
        time.sleep(0.3)
    return found


def explain() -> str:
    return "\n".join(
        subprocess.run(words, capture_output=True, text=True).stdout
        for words in (["squeue", "--array"], ["sinfo"], ["sacct", "-D", "-X", "-o", "JobID,State,ExitCode,NodeList"])
    )


def test_a_disturbed_table_equals_an_undisturbed_one(real_slurm: RealSlurm, tmp_path: Path) -> None:
    name = profile(tmp_path)
    submit(tmp_path, name)
    states = wait("all train", lambda: all_training(tmp_path))
    lost, preempted, cancelled, _ = CELLS
    for cell in (lost, preempted, cancelled):
        run = states[cell].run
        wait(f"{cell} saves", lambda run=run: trained_nimg(run) > 0)
    real_slurm.node(states[lost].node, "stop")
    other = ["sbatch", "-p", "main", "-w", states[preempted].node, "-c", "4", "--mem=100", "-o", "/dev/null"]
    subprocess.run([*other, "--wrap", "sleep 1"], check=True, capture_output=True)
    repro(tmp_path, "cancel", cancelled)
    wait("the cancelled one ends", lambda: status(tmp_path)[cancelled].state == "cancelled")
    _, err = submit(tmp_path, name, code=1)
    assert err.count("cancelled") == 2 and err.count("is running") + err.count("is pending") == 3
    assert "1 not submitted again: add --retry" in err
    submit(tmp_path, name, "--retry")
    real_slurm.node(states[lost].node, "start")
    wait("all are done", lambda: {s.state for s in status(tmp_path).values()} == {"done"}, 240)
    local = tmp_path / "local"
    gin = [word for binding in BINDINGS for word in ("--gin", binding)]
    words = ["--scale", "ci", "--rows", *ROWS, "--columns", *COLUMNS, "--data", str(data_dir()), "--jobs", "2", *gin]
    code, _, err = finish(["reproduce", TABLE, *words, "--runs", str(local)], tmp_path)
    assert code == 0, err
    assert snapshot_bytes(tmp_path / "runs") == snapshot_bytes(local)
    assert values(tmp_path / "runs") == values(local) and len(values(local)) == 4


def all_training(tmp_path: Path) -> dict[str, CellState] | None:
    states = status(tmp_path)
    return states if all(s.state == "training" and s.node for s in states.values()) else None


def values(runs: Path) -> dict[Any, Any]:
    records, problems = read_all([runs])
    assert not problems
    return {record.key: {name: metric.value for name, metric in record.metrics.items()} for record in records}

"""Tables on a real SLURM that loses nodes, preempts and cancels: they end with what an undisturbed run gives.

Through the command line, on the project's development cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RealSlurm
from helpers import TINY, compute, data_dir, finish, snapshot_bytes
from safetensors.torch import load_file

from repro.cli import main
from repro.launch import submissions
from repro.launch.attempts import history
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
    return {state.cell: state for state in survey(submissions.read_all([tmp_path / "runs"])).cells()}


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
    assert f"{shown(cancelled)} seed 0: cancelled" in err
    for cell in (lost, preempted):
        assert f"{shown(cell)} seed 0: is running" in err or f"{shown(cell)} seed 0: is pending" in err
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


def shown(cell: str) -> str:
    return cell.removeprefix(f"{TABLE}/")


def all_training(tmp_path: Path) -> dict[str, CellState] | None:
    states = status(tmp_path)
    return states if all(s.state == "training" and s.node for s in states.values()) else None


def values(runs: Path) -> dict[Any, Any]:
    records, problems = read_all([runs])
    assert not problems
    return {record.key: {name: metric.value for name, metric in record.metrics.items()} for record in records}


ONE = ("--rows", "f", "--columns", "cifar10-cond-vp")
CELL = CELLS[2]


def submission_of_one(name: str, bindings: Sequence[str] = TINY) -> list[str]:
    gin = [word for binding in bindings for word in ("--gin", binding)]
    return ["submit", TABLE, "--scale", "ci", *ONE, "--data", str(data_dir()), "--cluster", name, *gin]


def submit_one(tmp_path: Path, name: str, bindings: Sequence[str] = TINY) -> tuple[str, str]:
    return repro(tmp_path, *submission_of_one(name, bindings))


def test_slurms_own_words(real_slurm: RealSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, words in (
        ({"partition": "lwo"}, "invalid partition specified: lwo"),
        ({"account": "nobody"}, "Invalid account or account/partition combination"),
        ({"nodes": 9}, "Cluster.nodes asks for 9 nodes, and partition low has 4"),
        ({"partition": "short", "timeout": 6}, "Cluster.timeout asks for 6 minutes, and partition short has 5"),
    ):
        command = submission_of_one(profile(tmp_path, **settings))
        assert main([*command, "--runs", str(tmp_path / "runs")]) == 2 and words in capsys.readouterr().err
    assert not status(tmp_path)
    assert subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout == ""


def test_a_runs_folder_that_the_nodes_do_not_see(real_slurm: RealSlurm) -> None:
    folder = real_slurm.state / "login-only" / "place"
    folder.mkdir()
    submit_one(folder, profile(folder))
    state = wait("it fails", lambda: one(folder) if one(folder).state == "failed" else None)
    assert f"do the nodes see {folder / 'runs'}?" in state.reason


def one(tmp_path: Path) -> CellState:
    return status(tmp_path)[CELL]


def test_two_nodes_train_what_one_process_trains(real_slurm: RealSlurm, tmp_path: Path) -> None:
    bindings = (*TINY, "SongUNet.dropout = 0.0")  # each process draws its own masks
    submit_one(tmp_path, profile(tmp_path, cpus=1, nodes=2, evaluation_nodes=2), bindings)
    wait("it is done", lambda: one(tmp_path).state == "done", 240)
    compute(tmp_path / "local", bindings)
    (ours,), (theirs,) = read_all([tmp_path / "runs"])[0], read_all([tmp_path / "local"])[0]
    assert ours.world_size == 2 and theirs.world_size == 1
    assert ours.key == theirs.key and ours.num_samples == theirs.num_samples and ours.first_seed == theirs.first_seed
    files = [next(folder.rglob("ema/*.safetensors")) for folder in (tmp_path / "runs", tmp_path / "local")]
    weights, reference = map(load_file, files)
    assert weights.keys() == reference.keys()
    for name, value in weights.items():
        # a key's bias has no true gradient (softmax does not see it): Adam moves it by the rounding of others
        kept = torch.arange(len(value)) % 3 != 1 if name.endswith("qkv.bias") else slice(None)
        torch.testing.assert_close(value[kept], reference[name][kept], rtol=1e-3, atol=1e-5)
    for name, metric in ours.metrics.items():
        assert metric.value == pytest.approx(theirs.metrics[name].value, rel=0.02)


def test_a_killed_process_continues_and_a_poison_job_stops(real_slurm: RealSlurm, tmp_path: Path) -> None:
    poisoned = tmp_path / "poisoned"
    poisoned.mkdir()
    # no process can load torch in so little address space, however often it is started
    submit_one(poisoned, profile(poisoned, cpus=1, setup=["ulimit -v 400000"]))
    submit_one(tmp_path, profile(tmp_path, cpus=1), BINDINGS)
    run = one(tmp_path).run
    wait("it saves", lambda: trained_nimg(run) > 0)
    kill_workers(tmp_path / "runs")
    state = wait("the poison stops", lambda: one(poisoned) if one(poisoned).state == "failed" else None)
    assert "the same failure twice at 0 images" in state.reason and state.restarts == 1
    wait("the killed one is done", lambda: one(tmp_path).state == "done", 240)
    train = next(member for member in one(tmp_path).members if member.stage == "train")
    first, second = history(train)
    assert first.kind == "killed" and "signal 9" in first.message and second.kind == "done"
    assert second.began["position"][0] > 0  # it did not begin anew


def kill_workers(runs: Path) -> None:
    """kill -9 every Python process that works on these runs."""
    killed = 0
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"submitit.core._submit" in words and b"srun" not in words[0] and str(runs).encode() in b" ".join(words):
            os.kill(int(entry.name), signal.SIGKILL)
            killed += 1
    assert killed

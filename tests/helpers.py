"""What several test modules share: a tiny experiment, its data, and the command line as a process."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from repro import assets
from repro.cells import resolve
from repro.experiment import Execution
from repro.launch.plan import Folders, Plan, make_plan
from repro.launch.work import Worker, build_trajectory
from repro.tables import find_cell
from repro.training.ema import HalfLifeEMA
from repro.training.loop import Tracked, Trainer

CELL = "edm/table2/f/cifar10-cond-vp"
SIBLING = "edm/table2/e/cifar10-cond-vp"
TINY = (
    "Scale.images = 800_000",
    "Scale.intervals = 2_500",
    "Scale.batch = [(128, 2), (512, 8), (4096, 64)]",
    "Scale.samples = 2_500",
)
"""250 images in steps of 8, 20 generated images: about a second."""
LONG = ("Scale.images = 100_000", "Scale.intervals = 500", *TINY[2:])
"""2,000 images in steps of 8: seconds, long enough to be hit in the middle."""
BATCH = 8


@cache
def scratch() -> Path:
    """A folder for this test process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="repro-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def data_dir() -> Path:
    """Prepared digits at 8x8."""
    resolved = resolve(find_cell(CELL), "ci", TINY)
    resolved.dataset().open(scratch() / "data", 0)
    return scratch() / "data"


def folders(runs: Path) -> Folders:
    return Folders(runs, (), data_dir(), None)


def plan(
    runs: Path, bindings: Sequence[str] = TINY, cells: Sequence[str] = (CELL,), seeds: Sequence[int] = (0,)
) -> Plan:
    return make_plan([find_cell(name) for name in cells], "ci", bindings, seeds, [runs])


def compute(runs: Path, bindings: Sequence[str] = TINY, **kwargs: Any) -> Plan:
    """Do a whole plan in this process; returns it."""
    made = plan(runs, bindings)
    for job in made.jobs:
        assert Worker(folders(runs), **kwargs).run(job) is None
    return made


def make_trainer(
    folder: Path,
    total: int,
    *,
    milestones: Sequence[int] = (),
    profiles: Sequence[HalfLifeEMA] = (HalfLifeEMA(100, 0.5),),
    bindings: Sequence[str] = (),
    stream: Any = None,
    identity: str = "some trajectory",
    stop: Callable[[], bool] = lambda: False,
    micro_batch: int = 0,
    checkpoint_seconds: float = 1e9,
) -> Trainer:
    """A trainer of the tiny cell in `folder`, to `total` images, in this process."""
    trajectory = build_trajectory(resolve(find_cell(CELL), "ci", [*TINY, *bindings]))
    assert trajectory.batch == BATCH
    stream = stream or trajectory.data.open(data_dir(), trajectory.seed)
    folder.mkdir(parents=True, exist_ok=True)
    execution = Execution(threads=1, device="cpu", micro_batch=micro_batch, checkpoint_seconds=checkpoint_seconds)
    tracked = Tracked({profile.name: profile for profile in profiles}, [*milestones, total])
    return Trainer(trajectory, identity, stream, folder, tracked, execution, stop=stop)


def after(steps: int) -> Callable[[], bool]:
    """A `stop` that says so at the given call."""
    left = [steps]

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return stop


def snapshot_bytes(runs: Path) -> dict[str, bytes]:
    """Every EMA below a folder: relative path -> content."""
    return {p.relative_to(runs).as_posix(): p.read_bytes() for p in runs.rglob("ema/*.safetensors")}


def environment() -> dict[str, str]:
    """For child processes: this clone and one thread."""
    changed = {"PYTHONPATH": str(assets.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    own = {k: v for k, v in os.environ.items() if not k.startswith("REPRO_") or k == "REPRO_CACHE"}
    return {**own, **changed}


def command(verb: str, runs: Path, bindings: Sequence[str] = TINY, *more: str) -> list[str]:
    """Words of `repro VERB CELL` for the tiny cell."""
    gin = [word for binding in bindings for word in ("--gin", binding)]
    return [verb, CELL, "--scale", "ci", "--runs", str(runs), "--data", str(data_dir()), *gin, *more]


def cli(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The program run to its end."""
    line = [sys.executable, "-m", "repro", *words]
    return subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def start(words: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    """The program in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "repro", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(words: Sequence[str], cwd: Path, timeout: float = 300) -> tuple[int, str, str]:
    """Run the program to its end: (exit code, stdout, stderr)."""
    process = start(words, cwd)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err

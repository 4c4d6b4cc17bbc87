"""Progress on the terminal: bars where there is one, a line now and then where there is not."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from repro.launch.plan import Job

INTERVAL = 10.0
"""Seconds between lines where there is no terminal."""


def describe(event: dict[str, Any]) -> str:
    """One phrase for a progress event: kimg, loss and speed in training, images in sampling."""
    if event.get("phase") == "train":
        speed = event["img_per_sec"]
        return (
            f"{event['nimg'] / 1000:.1f}/{event['total'] / 1000:.1f} kimg  loss {event['loss']:.4g}  {speed:.0f} img/s"
        )
    if event.get("phase") == "sample":
        return f"sampling {event['images']}/{event['of']} images"
    return ""


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Estimate:
    """Elapsed and remaining time of a set of jobs from the fractions that they report."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.running: dict[str, float] = {}
        self.started = time.monotonic()

    @property
    def fraction(self) -> float:
        return (self.finished + sum(self.running.values())) / max(self.total, 1)

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.started
        if self.fraction < 0.01:
            return f"{clock(elapsed)} elapsed"
        return f"{clock(elapsed)} elapsed, {clock(elapsed / self.fraction - elapsed)} left"


class Lines:
    """For logs and pipes: one line when a job begins or ends, and one every few seconds in between."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.estimate = Estimate(total)
        self.last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def begin(self, job: Job) -> None:
        self.estimate.running.setdefault(job.trajectory_hash, 0.0)

    def update(self, job: Job, event: dict[str, Any]) -> None:
        if "note" in event:
            self.note(event["note"])
            return
        self.estimate.running[job.trajectory_hash] = event["fraction"]
        if time.monotonic() - self.last >= INTERVAL:
            self.last = time.monotonic()
            self.note(
                f"[{self.estimate.finished}/{self.estimate.total}] {job.title}  {describe(event)}  ({self.estimate})"
            )

    def end(self, job: Job, note: str) -> None:
        self.estimate.running.pop(job.trajectory_hash, None)
        if not note.startswith("waiting"):
            self.estimate.finished += 1
        self.note(f"[{self.estimate.finished}/{self.estimate.total}] {job.title}  {note}  ({self.estimate})")

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Bars:
    """For terminals: a bar for each running job and one for all, with the time left."""

    def __init__(self, total: int) -> None:
        self.console = Console(stderr=True)
        self.estimate = Estimate(total)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.overall = self.progress.add_task("all", total=1.0, text="")
        self.bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def begin(self, job: Job) -> None:
        self.estimate.running[job.trajectory_hash] = 0.0
        self.bars[job.trajectory_hash] = self.progress.add_task(job.title, total=1.0, text="starting")

    def update(self, job: Job, event: dict[str, Any]) -> None:
        if "note" in event:
            self.note(event["note"])
            return
        self.estimate.running[job.trajectory_hash] = event["fraction"]
        self.progress.update(self.bars[job.trajectory_hash], completed=event["fraction"], text=describe(event))
        self._overall()

    def end(self, job: Job, note: str) -> None:
        self.estimate.running.pop(job.trajectory_hash, None)
        if not note.startswith("waiting"):
            self.estimate.finished += 1
        self.progress.remove_task(self.bars.pop(job.trajectory_hash))
        self.note(f"[{self.estimate.finished}/{self.estimate.total}] {job.title}  {note}")
        self._overall()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def _overall(self) -> None:
        self.progress.update(self.overall, completed=self.estimate.fraction, text=str(self.estimate))


def display(total: int) -> Lines | Bars:
    """Bars on a terminal, lines elsewhere."""
    return Bars(total) if sys.stderr.isatty() else Lines(total)

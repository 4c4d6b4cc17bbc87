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
    if event.get("phase") == "wait":
        return f"waits for {event['owner']}"
    return ""


def clock(seconds: float) -> str:
    """m:ss, h:mm:ss from an hour on, days and h:mm from a day on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Estimate:
    """Elapsed and remaining time of a set of jobs from the fractions that they report.

    The time left follows from the work since the first report: neither the start of the processes nor what a job had
    done before this command says anything about its speed.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.running: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self.waiting: dict[str, str] = {}
        self.started = time.monotonic()
        self.first: float | None = None

    def report(self, job: Job, event: dict[str, Any]) -> bool:
        """Take a progress event; True if it says for the first time that the job waits for this owner."""
        name = job.trajectory_hash
        if event.get("phase") == "wait":
            told = self.waiting.get(name) == event["owner"]
            self.waiting[name] = event["owner"]
            return not told
        self.waiting.pop(name, None)
        if self.first is None:
            self.first = time.monotonic()
            self.before[name] = event["fraction"]
        self.before.setdefault(name, event.get("before", 0.0))
        self.running[name] = event["fraction"]
        return False

    def end(self, job: Job, note: str = "done") -> None:
        """The job is over. What it left undone, or another process did for it, was no work of this command."""
        name = job.trajectory_hash
        reached = self.running.pop(name, 0.0)
        if name not in self.before or note != "done":
            self.before[name] = self.before.get(name, 0.0) + 1 - reached
        self.finished += 1

    @property
    def fraction(self) -> float:
        """Part of all jobs that is done, 0 to 1."""
        return (self.finished + sum(self.running.values())) / max(self.total, 1)

    @property
    def left(self) -> float | None:
        """Seconds that remain; None before enough is done to say."""
        now = self.fraction - sum(self.before.values()) / max(self.total, 1)
        if self.first is None or now < 0.01:
            return None
        return (time.monotonic() - self.first) * (1 - self.fraction) / now

    def __str__(self) -> str:
        elapsed, left = time.monotonic() - self.started, self.left
        return f"{clock(elapsed)} elapsed" + ("" if left is None else f", about {clock(left)} left")


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
        return

    def update(self, job: Job, event: dict[str, Any]) -> None:
        if "note" in event:
            self.note(event["note"])
            return
        news = self.estimate.report(job, event)
        if news or time.monotonic() - self.last >= INTERVAL:
            self.last = time.monotonic()
            self._line(job, describe(event))

    def end(self, job: Job, note: str) -> None:
        self.estimate.end(job, note)
        self._line(job, note)

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _line(self, job: Job, text: str) -> None:
        self.note(f"[{self.estimate.finished}/{self.estimate.total}] {job.title}  {text}  ({self.estimate})")


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
        self.bars[job.trajectory_hash] = self.progress.add_task(job.title, total=1.0, text="starting")

    def update(self, job: Job, event: dict[str, Any]) -> None:
        if "note" in event:
            self.note(event["note"])
            return
        if self.estimate.report(job, event):
            self.note(f"{job.title}  {describe(event)}")
        self.progress.update(self.bars[job.trajectory_hash], completed=event["fraction"], text=describe(event))
        self._overall()

    def end(self, job: Job, note: str) -> None:
        self.estimate.end(job, note)
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

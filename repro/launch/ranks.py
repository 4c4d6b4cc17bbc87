"""Jobs by processes that somebody else started (torchrun, a SLURM step): all of them do each job together."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from repro.launch.local import Display, Failure, StopFlag, attempt, throttled
from repro.launch.plan import Folders, Job
from repro.launch.work import Worker
from repro.training.distributed import World


class RankExecutor:
    """Runs jobs one after the other, in this process and the others of its world.

    Args:
        folders: where runs, data and weights lie; the same for all processes.
        world: joined before.
        display: shows progress; None in all processes but the first.
    """

    def __init__(self, folders: Folders, world: World, display: Display | None) -> None:
        self.folders = folders
        self.world = world
        self.display = display
        self.interrupted = False

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Do all jobs, which must be the same in all processes; returns those that failed, or that others work on."""
        stop = StopFlag()
        stop.on_signals()
        failures = []
        try:
            for job in jobs:
                if self.world.any(stop.is_set()):
                    break
                if self.display:
                    self.display.begin(job)
                worker = Worker(self.folders, self._reporter(job), stop.is_set, self.world)
                kind, content = attempt(worker, job)
                if kind == "failed":
                    failures.append(Failure(job, *content))
                elif kind == "busy":
                    failures.append(Failure(job, f"is being computed by {content}", 1))
                if self.display:
                    self.display.end(job, "done" if kind == "done" else f"failed: {failures[-1].message}")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        self.interrupted = stop.is_set()
        return failures

    def _reporter(self, job: Job) -> Callable[[dict[str, Any]], None]:
        shown = self.display
        return (lambda event: None) if shown is None else throttled(lambda event: shown.update(job, event))

"""The local executor: jobs on this machine's cores, one process each, that survive being killed."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

from repro.errors import ReproError
from repro.launch.plan import Folders, Job

RETRY_SECONDS = 1.0
"""How long a job that another process is working on waits before it is looked at again."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
MALLOC = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=67108864"
"""For a worker's C library: keep freed memory. A step frees and asks for the same tensors again, and giving the pages
back in between costs a thousand page faults a step. Other C libraries ignore it."""


@dataclasses.dataclass
class Failure:
    """A job that did not end well: one line, the exit code it asks for, and the traceback for --debug."""

    job: Job
    message: str
    exit_code: int
    trace: str = ""


class Display(Protocol):
    """What shows progress; methods are called in this process only."""

    def begin(self, job: Job) -> None: ...
    def update(self, job: Job, event: dict[str, Any]) -> None: ...
    def end(self, job: Job, note: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclasses.dataclass
class _Slot:
    process: Any
    pipe: Connection
    job: Job | None = None


class LocalExecutor:
    """Runs jobs in `workers` processes.

    Args:
        folders: where runs, data and weights lie.
        workers: processes; each computes with the threads that the scale fixes.
        display: shows progress.
    """

    def __init__(self, folders: Folders, workers: int, display: Display) -> None:
        self.folders = folders
        self.workers = workers
        self.display = display
        self.failures: list[Failure] = []
        self.interrupted = False
        self._begun: set[str] = set()
        self._open: set[str] = set()
        self._context = multiprocessing.get_context("spawn")

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Do all jobs; returns those that failed. Ctrl-C lets every worker save its state, then sets `interrupted`."""
        waiting: deque[tuple[float, Job]] = deque((0.0, job) for job in jobs)
        self._open = {job.trajectory_hash for job in jobs}
        slots = [self._start() for _ in range(min(self.workers, len(jobs)))]
        try:
            while waiting or any(slot.job for slot in slots):
                self._feed(slots, waiting)
                self._listen(slots, waiting)
        except KeyboardInterrupt:
            self.interrupted = True
            self.display.note("stopping: every run saves its state")
        finally:
            self._end(slots)
        return self.failures

    def _start(self) -> _Slot:
        os.environ.setdefault("GLIBC_TUNABLES", MALLOC)  # read when a process starts: by the workers, not by this one
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs, self.folders), name="repro-worker")
        # A child inherits the blocked signals: Ctrl-C cannot hit it before it knows how to stop. The tracker goes
        # first, because starting it would unblock them.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Slot(process, ours)

    def _feed(self, slots: list[_Slot], waiting: deque[tuple[float, Job]]) -> None:
        for slot in slots:
            if slot.job is not None:
                continue
            for _ in range(len(waiting)):
                due, job = waiting.popleft()
                if due > time.monotonic() or self._open.intersection(job.after):
                    waiting.append((due, job))
                    continue
                slot.job = job
                if job.trajectory_hash not in self._begun:
                    self._begun.add(job.trajectory_hash)
                    self.display.begin(job)
                try:
                    slot.pipe.send(job)
                except OSError:
                    pass  # the worker is dead; `_listen` sees that and says so
                break

    def _listen(self, slots: list[_Slot], waiting: deque[tuple[float, Job]]) -> None:
        ready = multiprocessing.connection.wait([slot.pipe for slot in slots], timeout=0.2)
        for slot in slots:
            if slot.pipe not in ready:
                continue
            try:
                kind, content = slot.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._replace(slots, slot)
                continue
            job = slot.job
            assert job is not None, "a worker speaks only about its job"
            if kind == "progress":
                self.display.update(job, content)
                continue
            slot.job = None
            if kind == "done":
                self._open.discard(job.trajectory_hash)
                self.display.end(job, "done")
            elif kind == "busy":
                self.display.update(job, {"phase": "wait", "fraction": 0.0, "owner": content})
                waiting.append((time.monotonic() + RETRY_SECONDS, job))
            else:
                self._fail(Failure(job, *content))

    def _replace(self, slots: list[_Slot], slot: _Slot) -> None:
        """A worker died: its job has failed, a fresh worker takes its place."""
        slot.process.join()
        if slot.job is not None:
            code = slot.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            self._fail(
                Failure(slot.job, f"its process died ({how}); the same command continues from its checkpoint", 1)
            )
        slots[slots.index(slot)] = self._start()

    def _fail(self, failure: Failure) -> None:
        self._open.discard(failure.job.trajectory_hash)
        self.failures.append(failure)
        self.display.end(failure.job, f"failed: {failure.message}")

    def _end(self, slots: list[_Slot]) -> None:
        for slot in slots:
            try:
                slot.pipe.send(None)
            except OSError:
                pass
            if (self.interrupted or slot.job is not None) and slot.process.is_alive():
                slot.process.terminate()  # SIGTERM: the worker saves its state and ends
        for slot in slots:
            slot.process.join()
            slot.pipe.close()


def serve(pipe: Connection, folders: Folders) -> None:
    """Body of a worker process: jobs in, progress and outcomes out, until None comes, or the parent is gone."""
    stop = StopFlag()
    stop.on_signals()
    stop.on_parent_death()
    from repro.launch.work import Worker  # imports torch, after the signals are in place

    gc.freeze()  # a collection need not look at the imported packages again and again

    def report(event: dict[str, Any]) -> None:
        try:
            pipe.send(("progress", event))
        except OSError:
            stop.set()

    worker = Worker(folders, throttled(report), stop.is_set)
    while not stop.is_set():
        if not pipe.poll(0.5):
            continue
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        outcome = attempt(worker, job)
        try:
            pipe.send(outcome)
        except OSError:
            return


def attempt(worker: Any, job: Job) -> tuple[str, Any]:
    """Run one job: ("done", None), ("busy", owner) or ("failed", (message, exit code, traceback))."""
    try:
        owner = worker.run(job)
        return ("done", None) if owner is None else ("busy", owner)
    except ReproError as error:
        return ("failed", (str(error), error.exit_code, traceback.format_exc()))
    except Exception as error:  # a worker must not take the others with it
        return ("failed", (f"{type(error).__name__}: {error}", 1, traceback.format_exc()))


def throttled(report: Callable[[dict[str, Any]], None], seconds: float = 0.3) -> Callable[[dict[str, Any]], None]:
    """`report` at most once in `seconds`; notes always pass."""
    last = [0.0]

    def limited(event: dict[str, Any]) -> None:
        now = time.monotonic()
        if "note" in event or now - last[0] >= seconds:
            last[0] = now
            report(event)

    return limited


class StopFlag:
    """Set by SIGINT or SIGTERM, or when the parent process is gone; asked by the work after every step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def on_signals(self) -> None:
        """Let SIGINT and SIGTERM set the flag in place of ending the process; they may come blocked from the parent."""
        for number in STOPPING:
            signal.signal(number, lambda *_: self._event.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def on_parent_death(self) -> None:
        """Set the flag when the parent is killed, so that no worker is left behind."""
        parent = multiprocessing.parent_process()
        if parent is not None:

            def wait() -> None:
                parent.join()
                self._event.set()

            threading.Thread(target=wait, daemon=True).start()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

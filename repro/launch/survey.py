"""How everything that was submitted stands: files of the runs folder first, then one look at SLURM's queue, then one at
its accounting for what neither explains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from repro.identity import SHORT
from repro.launch import attempts, slurm
from repro.launch.folders import last_progress, records_there
from repro.launch.plan import CHOSEN
from repro.launch.slurm import Queued
from repro.launch.slurm_submit import member_log
from repro.launch.submissions import Member, Submission

Kind = Literal["pending", "running", "done", "failed", "cancelled"]
GRACE_SECONDS = 60.0
"""How long after a submission neither queue nor accounting need to know a job: both are late."""
TAIL_LINES = 3


@dataclasses.dataclass(frozen=True)
class State:
    """One job: what it is doing, why, SLURM's name of it, where, and how often it was started again."""

    kind: Kind
    reason: str = ""
    job: str = ""
    node: str = ""
    restarts: int = 0

    @property
    def active(self) -> bool:
        return self.kind in ("pending", "running")


@dataclasses.dataclass(frozen=True)
class CellState:
    """One replicate of a cell, in the newest submission that has it.

    state: pending, training, sampling, done, failed or cancelled; progress: the last line of the training log.
    """

    cell: str
    scale: str
    seed: int
    run: Path
    state: str
    reason: str
    records: int
    wanted: int
    job: str
    node: str
    restarts: int
    progress: dict[str, Any] | None
    members: tuple[Member, ...]
    submission: Submission

    @property
    def left_seconds(self) -> float | None:
        """Seconds of training that remain; None where nothing says so."""
        if self.state != "training" or not self.progress or not self.progress.get("img_per_sec"):
            return None
        return float((self.progress["total"] - self.progress["nimg"]) / self.progress["img_per_sec"])


class Survey:
    """One look at some submissions.

    Args:
        submissions: oldest first.
        queue: what `slurm.queue` said.
    """

    def __init__(self, submissions: Sequence[Submission], queue: Mapping[str, Queued]) -> None:
        self.queue = queue
        self.submissions = submissions
        self._numbers: dict[tuple[str, str], str | None] = {}
        self._cancelled: dict[str, set[str]] = {}
        self._states: dict[tuple[Path, str], State] = {}
        self._accounting: dict[str, str] | None = None

    def number(self, submission: Submission, array: str) -> str | None:
        """The job number of an array, or None."""
        key = (submission.id, array)
        if key not in self._numbers:
            self._numbers[key] = submission.number(array, self.queue)
        return self._numbers[key]

    def newest(self) -> dict[tuple[str, str, int, str], tuple[Submission, dict[str, Any]]]:
        """(cell, scale, seed, evaluation hash) -> the newest submission that has it, and its entry there."""
        found = {}
        for submission in self.submissions:
            for entry in submission.facts["cells"]:
                key = (entry["cell"], entry["scale"], entry["seed"], entry["evaluation"])
                found[key] = (submission, entry)
        return found

    def trajectory(self, trajectory_hash: str) -> list[tuple[Submission, Member, State]]:
        """The jobs of a trajectory in the newest submission that has it."""
        for submission in reversed(self.submissions):
            members = [m for m in submission.members() if m.job.trajectory_hash == trajectory_hash]
            if members:
                return [(submission, member, self.state(submission, member)) for member in members]
        return []

    def state(self, submission: Submission, member: Member) -> State:
        """How one job stands."""
        key = (member.folder, member.name)
        if key not in self._states:
            self._states[key] = self._state(submission, member)
        return self._states[key]

    def _state(self, submission: Submission, member: Member) -> State:
        number = self.number(submission, member.array)
        history = attempts.history(member)
        restarts = history[-1].restart if history else 0
        if number is None:
            return State("failed", "it never reached SLURM", "", "", restarts)
        job = member.job_id(number)
        node = history[-1].began.get("node", "") if history else ""
        queued = self.queue.get(job)
        if queued is not None:
            if queued.waiting:
                return State("pending", _why_pending(queued, history), job, "", restarts)
            return State("running", "", job, queued.nodes, restarts)
        if history and history[-1].kind == "done":
            return State("done", "", job, node, restarts)
        told = self._told(job)
        if submission.id not in self._cancelled:
            self._cancelled[submission.id] = submission.cancelled()
        if member.name in self._cancelled[submission.id] or told.startswith("CANCELLED"):
            why = "cancelled" if member.name in self._cancelled[submission.id] else "SLURM says CANCELLED"
            return State("cancelled", why, job, node, restarts)
        if not history and told in ("", "PENDING", "RUNNING") and _age(submission, member.array) < GRACE_SECONDS:
            return State("pending", "just submitted", job, "", 0)
        return State("failed", _why_failed(member, number, history, told), job, node, restarts)

    def _told(self, job: str) -> str:
        """What accounting says of a job; asked once, for all jobs that no file explains."""
        if self._accounting is None:
            jobs = {
                member.job_id(number)
                for submission in self.submissions
                for member in submission.members()
                for number in [self.number(submission, member.array)]
                if number is not None and member.job_id(number) not in self.queue
            }
            self._accounting = slurm.accounting(jobs)
        return self._accounting.get(job, "")

    def cells(self) -> list[CellState]:
        """Every replicate that was ever submitted, in the order of the cells' names."""
        members = {s.id: _by_trajectory(s) for s in self.submissions}
        found = [
            self._cell(submission, entry, members[submission.id].get(entry["trajectory"], []))
            for submission, entry in self.newest().values()
        ]
        return sorted(found, key=lambda state: (state.cell, state.scale, state.seed))

    def _cell(self, submission: Submission, entry: dict[str, Any], members: list[Member]) -> CellState:
        run = submission.folder.parent.parent / entry["trajectory"][:SHORT]
        name = entry["evaluation"]
        mine = [m for m in members if m.stage == "train" or any(t.evaluation_hash == name for t in m.job.tasks)]
        wanted = {(t.milestone, t.range) for m in mine for t in m.job.tasks if t.evaluation_hash == name}
        there = records_there(run, name)
        if any(milestone == CHOSEN for milestone, _ in wanted):  # previews choose it: any candidate's record is the one
            there |= {(CHOSEN, k) for _, k in there}
        if wanted <= there:
            state, chosen = "done", State("done")
        else:
            state, chosen = self._unfinished(submission, mine)
        return CellState(
            cell=entry["cell"],
            scale=entry["scale"],
            seed=entry["seed"],
            run=run,
            state=state,
            reason=chosen.reason,
            records=len(there & wanted) if wanted else len(there),
            wanted=len(wanted) or len(there),
            job=chosen.job,
            node=chosen.node,
            restarts=chosen.restarts,
            progress=last_progress(run),
            members=tuple(mine),
            submission=submission,
        )

    def _unfinished(self, submission: Submission, members: Sequence[Member]) -> tuple[str, State]:
        states = [(member, self.state(submission, member)) for member in members]
        for member, state in states:
            if state.kind == "running":
                return ("training" if member.stage == "train" else "sampling"), state
        for kind in ("failed", "cancelled", "pending"):
            # of a failed training and the evaluations that wait for it, or were removed for it, the training counts
            for _, state in states:
                if state.kind == kind:
                    return kind, state
        return "failed", State("failed", "its jobs say that they are done, but records are missing")


def survey(submissions: Sequence[Submission]) -> Survey:
    """Look at files and queue; where nothing was submitted, SLURM is not asked. MissingPrerequisite without SLURM."""
    return Survey(submissions, slurm.queue() if submissions else {})


def _by_trajectory(submission: Submission) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in submission.members():
        found.setdefault(member.job.trajectory_hash, []).append(member)
    return found


def _age(submission: Submission, array: str) -> float:
    try:
        return time.time() - (submission.folder / f"{array}.job.json").stat().st_mtime
    except OSError:
        return 0.0


def _why_pending(queued: Queued, history: Sequence[attempts.Attempt]) -> str:
    reason = queued.reason if queued.reason not in ("None", "") else ""
    hint = slurm.HINTS.get(reason.strip("()"))
    text = f"{reason}: {hint}" if hint else reason
    if history:
        last = history[-1]
        ended = {"stopped": "interrupted", "failed": "failed", "killed": "killed", None: "lost with its node"}
        text = f"{text}; queued again, was {ended.get(last.kind, last.kind)} at {attempts.describe(last.position)}"
    return text.strip("; ")


def _why_failed(member: Member, number: str, history: Sequence[attempts.Attempt], told: str) -> str:
    said = f"SLURM says {told}" if told else "SLURM knows it no more"
    if not history:
        log = member_log(member, number, kind="err")
        if not log.exists():
            return f"{said}, and it wrote no log: do the nodes see {member.folder.parent.parent}?"
        return f"{said} before it began: {' / '.join(tail(log))}"
    last = history[-1]
    if last.kind is None:
        return f"{said}; it left no word after {attempts.describe(last.position)}"
    poison = attempts.poison(history)
    return poison or last.message or f"{said} ({last.kind})"


def tail(path: Path, lines: int = TAIL_LINES, size: int = 16384) -> list[str]:
    """The last lines of a text file that are not empty; none where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - size))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]

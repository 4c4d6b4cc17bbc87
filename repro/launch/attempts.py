"""What each run of a SLURM job did, and whether another run makes sense.

Every run of a member leaves `<restart>-begin.json` and, unless its node was lost, `<restart>-end.json` in the member's
folder. The number is SLURM_RESTART_COUNT. The rule that keeps a poison job from going round for ever reads only these.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from repro.files import make_folder, write_json
from repro.launch.folders import blocks_there, records_there, trained_nimg
from repro.launch.submissions import Member

Kind = Literal["done", "failed", "killed", "stopped", "refused"]
Position = tuple[int, int, int]
"""(images trained, records, blocks of samples): the step that a run stands at."""
SAME_STEP = 5
"""Runs that may begin or end at one step, whatever ended them, before the job is stopped."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One run. kind None: it has not ended, or was lost with its node. position: at its end, or else its begin."""

    restart: int
    began: dict[str, Any]
    ended: dict[str, Any] | None

    @property
    def kind(self) -> Kind | None:
        return self.ended["kind"] if self.ended else None

    @property
    def position(self) -> Position:
        images, records, blocks = (self.ended or self.began)["position"]
        return images, records, blocks

    @property
    def message(self) -> str:
        return str(self.ended.get("message", "")) if self.ended else ""


def restart_count() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)


def job_id() -> str:
    """SLURM's name of this job, of an array member with its index."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")


def position(runs: Path, member: Member) -> Position:
    """How far a member's work is, as files say."""
    run = runs / member.run
    if member.stage == "train":
        return (trained_nimg(run), 0, 0)
    wanted = {task.evaluation_hash for task in member.job.tasks}
    return (0, sum(len(records_there(run, name)) for name in wanted), blocks_there(run))


def begin(member: Member, at: Position) -> None:
    """Note that a run begins."""
    facts = {"job": job_id(), "node": socket.gethostname(), "time": time.time(), "position": at}
    write_json(make_folder(member.attempts) / f"{restart_count():03d}-begin.json", facts)


def end(member: Member, kind: Kind, at: Position, message: str = "", trace: str = "", exit_code: int = 0) -> None:
    """Note how a run ended."""
    facts = {"kind": kind, "message": message, "trace": trace, "exit_code": exit_code}
    facts |= {"job": job_id(), "node": socket.gethostname(), "time": time.time(), "position": at}
    write_json(make_folder(member.attempts) / f"{restart_count():03d}-end.json", facts)


def end_of_other_rank(member: Member, rank: int, message: str) -> None:
    """Note why a process that is not the first failed; it takes the others with it."""
    write_json(make_folder(member.attempts) / f"{restart_count():03d}-rank{rank}.json", {"message": message})


def rank_message(member: Member, restart: int) -> str:
    """What other processes than the first said when they failed in a run."""
    lines = []
    for path in sorted(member.attempts.glob(f"{restart:03d}-rank*.json")):
        lines.append(f"process {path.stem.split('rank')[1]}: {json.loads(path.read_bytes())['message']}")
    return "; ".join(lines)


def history(member: Member) -> list[Attempt]:
    """All runs of a member so far, the present one included."""
    found = []
    for path in sorted(member.attempts.glob("*-begin.json")):
        try:
            began = json.loads(path.read_bytes())
            other = path.with_name(path.name.replace("begin", "end"))
            ended = json.loads(other.read_bytes()) if other.exists() else None
            found.append(Attempt(int(path.name.split("-")[0]), began, ended))
        except (OSError, ValueError):
            continue
    return found


def poison(runs: Sequence[Attempt]) -> str:
    """Why a job must not be started again after these runs; '' if it may.

    The same failure twice at the same step is poison; so are `SAME_STEP` runs that ended at one step for any reason,
    such as a lost node or a time limit too short for a single step.
    """
    over = [run for run in runs if run.kind != "done"]
    if not over:
        return ""
    last = over[-1]
    here = [run for run in over if run.position == last.position]
    failed = [run for run in here if run.kind in ("failed", "killed")]
    if last.kind in ("failed", "killed"):
        same = [run for run in failed if _essence(run.message) == _essence(last.message)]
        if len(same) > 1:
            return f"the same failure twice at {describe(last.position)}: {last.message}"
    if len(here) >= SAME_STEP:
        reasons = sorted({run.kind or "lost with its node" for run in here})
        return f"{len(here)} runs got no further than {describe(last.position)} ({', '.join(reasons)})"
    return ""


def describe(at: Position) -> str:
    """A position in words."""
    images, records, blocks = at
    return f"{images} images" if images or not (records or blocks) else f"{records} records and {blocks} blocks"


def _essence(message: str) -> str:
    """A message without what differs from run to run: numbers and addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", message)

"""What SLURM is asked, in as few calls as possible: its queue, its accounting, its limits, and one job's life."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from functools import cache

from repro.errors import CheckFailed, MissingPrerequisite

CALL_SECONDS = 60.0
ENDED = frozenset(
    "COMPLETED FAILED TIMEOUT CANCELLED NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE PREEMPTED REVOKED".split()
)
"""States in which a job runs no more and waits for nothing; PREEMPTED where preemption means the end."""
WAITING = frozenset("PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT".split())
"""States of a job without processes that will start, again or for the first time."""
NO_CLUSTER = "Could not establish a configuration source"
"""What SLURM's programs say where they are installed, and neither slurm.conf nor a DNS record names a controller."""
GET_ONE = (
    "use a login node of the cluster, load its module, or start the development cluster: slurm/dev-cluster up, then "
    'eval "$(slurm/dev-cluster env)"'
)
KEPT = frozenset(["SLURM_CONF"])
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
HINTS = {
    "PartitionNodeLimit": "the partition allows fewer nodes a job",
    "PartitionTimeLimit": "the partition allows less time",
    "PartitionConfig": "the partition's nodes are smaller",
    "BadConstraints": "no node has what is asked",
    "DependencyNeverSatisfied": "what it waits for has failed",
    "launch failed requeued held": "its start failed; `scontrol release` lets it try again",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
}
"""Reasons of a pending job that no patience cures, in words."""


@dataclasses.dataclass(frozen=True)
class Queued:
    """A job that SLURM still has to do with: its state, the reason why it waits, nodes, run time, comment."""

    state: str
    reason: str
    nodes: str
    elapsed: str
    comment: str

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def need(*programs: str) -> None:
    """Raise MissingPrerequisite where SLURM's programs are not on PATH."""
    for program in programs or ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise MissingPrerequisite(f"there is no SLURM here ({program} is not on PATH): {GET_ONE}")


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """One of SLURM's programs. CheckFailed where it does not answer, MissingPrerequisite where it knows no cluster."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{words[0]} did not answer in {CALL_SECONDS:g} s; is the SLURM controller up?") from None
    if done.returncode and NO_CLUSTER in done.stderr:
        raise MissingPrerequisite(f"there is no SLURM here ({words[0]} finds no configuration of a cluster): {GET_ONE}")
    return done


def ask(*words: str) -> str:
    """The answer of one of SLURM's programs. CheckFailed with SLURM's own words where it refuses."""
    done = call(*words)
    if done.returncode:
        raise CheckFailed(f"{words[0]}: {own_words(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def own_words(text: str) -> str:
    """The lines of an error message that SLURM's programs wrote, without their names; all of it where none did."""
    found = re.findall(r"^s\w+: (?:fatal: |error: )?(.+)$", text, flags=re.MULTILINE)
    return "; ".join(dict.fromkeys(line.strip() for line in found)) or " ".join(text.split())


def queue() -> dict[str, Queued]:
    """Every job of this user that waits or runs, array members by themselves ('12_3'): one call."""
    need("squeue")
    found = {}
    for line in ask("squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r|%N|%M|%k").splitlines():
        job, state, reason, nodes, elapsed, comment = (line.split("|", 5) + [""] * 6)[:6]
        found[job.strip()] = Queued(state, reason, nodes, elapsed, comment)
    return found


def accounting(jobs: Collection[str]) -> dict[str, str]:
    """Job -> the first word of its state, with its exit code where that is not 0: one call, for what sacct knows.

    Without accounting the controller is asked, which remembers ended jobs for minutes.
    """
    if not jobs:
        return {}
    wanted = ",".join(sorted({job.split("_")[0] for job in jobs}))
    words = ("sacct", "-n", "-X", "-P", "-j", wanted, "-o", "JobID,State,ExitCode")
    done = call(*words) if shutil.which("sacct") else None
    if done is None or done.returncode:
        return {member: state for member, (state, _) in _controller_jobs().items()}
    found = {}
    for line in done.stdout.splitlines():
        job, state, code = (line.split("|") + [""] * 3)[:3]
        word = state.split()[0] if state else ""
        found[job] = word if code in ("0:0", "") or word != "FAILED" else f"{word} (exit code {code})"
    return found


def _controller_jobs() -> dict[str, tuple[str, int]]:
    """Job -> (state, restarts) of every job that the controller remembers."""
    found = {}
    for line in call("scontrol", "show", "job", "--oneliner").stdout.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "ArrayTaskId" in fields:
            name = f"{fields.get('ArrayJobId')}_{fields['ArrayTaskId']}"
        else:
            name = fields.get("JobId", "")
        found[name] = (fields.get("JobState", ""), int(fields.get("Restarts", "0")))
    return found


@cache
def settings() -> dict[str, str]:
    """`scontrol show config`: name -> value; empty where the controller does not answer."""
    found = {}
    for line in call("scontrol", "show", "config").stdout.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            found[name.strip()] = value.strip()
    return found


def job_lives(job: str, restart: int, cluster: str) -> bool:
    """Whether the process that a SLURM job started in its given run may still be alive.

    False only where SLURM knows better: the job has ended, waits in the queue again, was started anew since, or is
    unknown to the controller, which knows every job that runs.

    Args:
        job: its raw number (SLURM_JOB_ID).
        restart: SLURM_RESTART_COUNT of the run in question.
        cluster: SLURM_CLUSTER_NAME there; of another cluster nothing can be known here.
    """
    if shutil.which("scontrol") is None:
        return True
    try:
        if cluster and settings().get("ClusterName") != cluster:
            return True
        done = call("scontrol", "show", "job", "--oneliner", job)
    except (CheckFailed, MissingPrerequisite):
        return True
    if done.returncode:
        return "Invalid job id" not in done.stderr
    for line in done.stdout.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if fields.get("JobId") == job:
            state = fields.get("JobState", "")
            return state not in ENDED | WAITING and int(fields.get("Restarts", "0")) <= restart
    return True


@contextlib.contextmanager
def clean_environment() -> Iterator[list[str]]:
    """Without variables that would overrule a script (SBATCH_*) or are of another job; yields their names."""
    removed = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(("SBATCH_", "SLURM_", "SUBMITIT_")) and name not in KEPT) or name in LAUNCHERS
    }
    for name in removed:
        del os.environ[name]
    try:
        yield sorted(removed)
    finally:
        os.environ.update(removed)


@dataclasses.dataclass(frozen=True)
class Partition:
    """The most that a partition's nodes have; None where it has no such limit."""

    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    minutes: float | None


def partition(name: str) -> Partition | None:
    """The size of a partition; None where SLURM knows none of that name (sbatch says so in its own words)."""
    done = call("sinfo", "--noheader", "--partition", name, "--format=%D|%c|%m|%G|%l")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 4]
    if done.returncode or not rows:
        return None
    minutes = [_minutes(row[4]) for row in rows]
    return Partition(
        nodes=sum(int(row[0]) for row in rows),
        cpus=max(_number(row[1]) for row in rows),
        memory_mb=max(_number(row[2]) for row in rows),
        gpus=max(sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)*?:(\d+)", row[3])) for row in rows),
        minutes=None if None in minutes else max(m for m in minutes if m is not None),
    )


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else 0


def _minutes(text: str) -> float | None:
    """Minutes of SLURM's `[days-]hours:minutes:seconds`; None for `infinite`."""
    days, _, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in ["0"] * (3 - len(parts)) + parts:
        seconds = 60 * seconds + int(part)
    return int(days or 0) * 1440 + seconds / 60

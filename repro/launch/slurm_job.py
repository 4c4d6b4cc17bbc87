"""One run of a SLURM job: check that it is what was submitted, join the other processes, work, say how it ended."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from repro import __version__, assets
from repro.errors import ReproError, UsageError
from repro.launch import attempts, slurm
from repro.launch.attempts import Position
from repro.launch.display import Lines
from repro.launch.local import throttled
from repro.launch.payload import folders_of, member_of
from repro.launch.plan import Folders
from repro.launch.slurm_worker import Asked
from repro.launch.submissions import Member, job_from_plain
from repro.launch.work import Worker
from repro.training.distributed import World, from_environment, joined
from repro.training.loop import Interrupted

BUSY_SECONDS = 10.0
"""How long a job waits before it looks again at a trajectory that another process works on."""
KILL_SECONDS = 900.0
"""How long a job that was told to end, or has queued itself again, waits for SLURM to end it."""
PORTS = (20000, 40000)
"""First port and number of ports of the rendezvous."""


class Refused(UsageError):
    """The job is not what was submitted, or may not be started again. No other run would be better."""


def run(payload: Mapping[str, Any], asked: Asked) -> str:
    """Do a job to its end, in each of its processes.

    Raises:
        Refused: the package or the configuration is not the submitter's; or the job is poison.
        Exception: what went wrong, once it is written down, where the job does not queue again.
    """
    member, folders = member_of(payload), folders_of(payload)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    try:
        if rank == 0:
            why = attempts.poison(attempts.history(member))
            attempts.begin(member, attempts.position(folders.runs, member))
            if why:
                raise Refused(f"not started again: {why}")
        check_same(payload)
        _work(member, folders, asked)
    except Exception as error:
        message = str(error) if isinstance(error, ReproError) else f"{type(error).__name__}: {error}"
        if rank:
            attempts.end_of_other_rank(member, rank, message)
            raise
        _conclude(member, folders, asked, payload["requeue"], error, message)
        raise
    if rank == 0:
        attempts.end(member, "done", attempts.position(folders.runs, member))
    return member.name


def check_same(payload: Mapping[str, Any]) -> None:
    """Refuse where the package or what the job's text means is not what was submitted; says both."""
    here, there = (__version__, assets.sources_sha256()), (payload["version"], payload["sources"])
    if here != there:
        raise Refused(
            f"this node has repro {here[0]} with sources {here[1][:16]} ({assets.PACKAGE}), the job was submitted with "
            f"repro {there[0]}, sources {there[1][:16]}: install the same version, or cancel and submit again"
        )
    job = job_from_plain(payload["job"])
    for request in job.wanted:
        found = [leg.trajectory_hash for leg in request.resolve().legs]
        if job.trajectory_hash not in found:
            raise Refused(
                f"{request.cell}: its configuration resolves to {found[0][:16]} here, was submitted as "
                f"{job.trajectory_hash[:16]}: cancel and submit again"
            )
    for task in job.tasks:
        hashed = task.request.resolve().evaluation_hash
        if hashed != task.evaluation_hash:
            raise Refused(
                f"{task.request.cell}: its evaluation resolves to {hashed[:16]} here, was submitted as "
                f"{task.evaluation_hash[:16]}: cancel and submit again"
            )


def rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT from SLURM's variables, the same in all processes of a run of a job."""
    from submitit import JobEnvironment

    first, count = PORTS
    job, restart = int(os.environ.get("SLURM_JOB_ID", "0")), attempts.restart_count()
    os.environ["MASTER_ADDR"] = JobEnvironment().hostnames[0]
    os.environ["MASTER_PORT"] = str(first + (job + 997 * restart) % count)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)  # of whoever submitted


def _work(member: Member, folders: Folders, asked: Asked) -> None:
    rendezvous()
    world = from_environment()
    execution = member.job.wanted[0].resolve().execution
    cuda = torch.cuda.is_available() and execution.args["device"] != "cpu"
    with joined(world, "cuda" if cuda else "cpu"):
        lines = Lines(1, sys.stdout)
        worker = Worker(folders, _reporter(lines, member, world), asked.is_set, world)
        if world.first:
            lines.begin(member.job)
            lines.note(f"{member.stage} {member.job.title} ({member.run}), {world.size} processes")
        while (owner := worker.run(member.job, member.stage)) is not None:
            if world.first:
                lines.note(f"waits: is being computed by {owner}")
            end = time.monotonic() + BUSY_SECONDS
            while time.monotonic() < end:
                if asked.is_set():
                    break
                time.sleep(0.2)
            if world.any(asked.is_set()):
                raise Interrupted(f"stopped while waiting for {owner}")
        if world.first:
            lines.end(member.job, "done")


def _reporter(lines: Lines, member: Member, world: World) -> Any:
    return throttled(lambda event: lines.update(member.job, event)) if world.first else lambda event: None


def _conclude(member: Member, folders: Folders, asked: Asked, requeue: str, error: Exception, message: str) -> None:
    """Write down how the first process ended; queue the job again where the profile and the history say so."""
    at: Position = attempts.position(folders.runs, member)
    if isinstance(error, Interrupted):
        attempts.end(member, "stopped", at, message)
        if asked.requeue and requeue != "never":
            queue_again()
        elif asked.is_set() and not asked.requeue:
            wait_for_the_end()
        return
    if isinstance(error, Refused):
        attempts.end(member, "refused", at, message)
        return
    code = error.exit_code if isinstance(error, ReproError) else 1
    attempts.end(member, "failed", at, message, traceback.format_exc(), code)
    if requeue == "always" and not attempts.poison(attempts.history(member)):
        queue_again()


def queue_again() -> None:
    """Have SLURM start this job again, and wait until it ends this run."""
    slurm.ask("scontrol", "requeue", attempts.job_id())
    wait_for_the_end()


def wait_for_the_end() -> None:
    """Wait for SLURM's KILL: a job that ended by itself now would count as over and not as preempted."""
    time.sleep(KILL_SECONDS)

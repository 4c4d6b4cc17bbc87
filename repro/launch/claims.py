"""Claims: one worker at a time on a trajectory or an evaluation, on any shared file system, without locks.

The claims of a folder are numbered files, each created atomically by a hard link. The highest number holds. Whoever
finds its owner dead, or released, tries to create the next number; only one can. A number is never used twice and no
file is removed, so a slow reader of an old state cannot become a second owner.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
import uuid
from functools import cache
from pathlib import Path

from repro.errors import UsageError
from repro.files import create_exclusive, make_folder
from repro.launch import slurm


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a claim: host, its boot, the process and when it started, and the SLURM job if it is one.

    namespace: that of the process id; containers of one host may share its name, but not their processes' numbers.
    restart, cluster: how often SLURM had started the job again, and the cluster's name.
    """

    host: str
    boot: str
    pid: int
    started: str
    slurm_job: str | None
    token: str
    since: float
    namespace: str = ""
    restart: int = 0
    cluster: str = ""

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}"


class Claim:
    """A held claim. Use as a context manager; leaving it releases."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether nobody has taken the folder over, as a restarted SLURM job does from a process on a lost node."""
        return _highest(self.file.parent)[1] == self.file

    def release(self) -> None:
        """Let others take the folder. Harmless twice; on a full disk the claim ends with its process instead."""
        try:
            create_exclusive(self.file.with_suffix(".released"), b"")
        except UsageError:
            pass


def acquire(folder: Path) -> Claim | Owner:
    """Claim a folder: the `Claim`, or the living `Owner` that holds it."""
    claims = make_folder(folder / "claims")
    while True:
        number, file = _highest(claims)
        if file is not None and not file.with_suffix(".released").exists():
            owner = _read(file)
            if owner is not None and _alive(owner):
                return owner
        mine = claims / f"{number + 1:06d}.json"
        if create_exclusive(mine, json.dumps(dataclasses.asdict(_me())).encode()):
            return Claim(mine)
        # Another process was faster; look again at who holds it now.


def how_to_release(folder: Path) -> str:
    """What a user who knows that the owner of a folder is gone has to do; no program can see it for another host."""
    _, file = _highest(folder / "claims")
    return f"if that is gone: touch {file.with_suffix('.released')}" if file else ""


def holder(folder: Path) -> Owner | None:
    """The living owner of a folder, if any; changes nothing."""
    _, file = _highest(folder / "claims")
    if file is None or file.with_suffix(".released").exists():
        return None
    owner = _read(file)
    return owner if owner is not None and _alive(owner) else None


def _highest(claims: Path) -> tuple[int, Path | None]:
    numbers = sorted(int(path.stem) for path in claims.glob("[0-9]*.json") if path.stem.isdigit())
    return (numbers[-1], claims / f"{numbers[-1]:06d}.json") if numbers else (0, None)


def _read(file: Path) -> Owner | None:
    try:
        return Owner(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # not written by this program: nobody that could be alive


def _me() -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=_boot_id(),
        pid=os.getpid(),
        started=_start_time(os.getpid()) or "",
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        token=uuid.uuid4().hex,
        since=time.time(),
        namespace=_pid_namespace(),
        restart=_restart(),
        cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
    )


def _alive(owner: Owner) -> bool:
    """False only where the owner is known to be dead.

    That is: an earlier run of the SLURM job that asks; a process of this host in another boot, or without a process of
    that start time; or a SLURM job that, as SLURM says, does not run, or not any more in that run.
    """
    if owner.slurm_job and (owner.slurm_job, owner.cluster) == (_me().slurm_job, _me().cluster):
        if owner.restart < _restart():
            return False
    if owner.host == socket.gethostname():
        if owner.boot != _boot_id():
            return False
        if owner.namespace == _pid_namespace():
            return _start_time(owner.pid) == owner.started
    return slurm.job_lives(owner.slurm_job, owner.restart, owner.cluster) if owner.slurm_job else True


def _restart() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Start time of a living process in clock ticks since boot; None for none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return _start_time_without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _start_time_without_proc(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""

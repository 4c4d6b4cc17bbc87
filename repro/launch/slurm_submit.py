"""From a plan to job arrays: what is asked of sbatch, by submitit."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro import __version__, assets
from repro.errors import UsageError
from repro.launch import slurm
from repro.launch.cluster import Cluster
from repro.launch.payload import payload
from repro.launch.plan import Folders, Job, Request
from repro.launch.slurm_worker import BLOCKING, Call
from repro.launch.submissions import Array, Member, Submission, comment, create, with_texts

RESTARTS = 10**6
"""Time limits that submitit lets a job meet: whether a job goes on is decided by `attempts`."""


def arrays_of(
    jobs: Sequence[Job],
    trained: Callable[[Job], bool],
    cluster: Cluster,
    limit: int,
    in_work: Mapping[str, str] = {},
) -> list[Array]:
    """Cut jobs into job arrays: trainings, and evaluations that wait for the member of equal index.

    A part of the evaluations has only members whose job has so many; sorting by their number keeps the indexes equal.

    Args:
        jobs: one a trajectory, with the tasks that are missing.
        trained: whether a job's weights are all there, so that only its evaluations are left.
        limit: greatest number of members of an array.
        in_work: trajectory hash -> job of an earlier submission that trains it.
    """
    arrays: list[Array] = []
    number = 0
    guides: tuple[str, ...] = ()
    for guided, training in ((False, True), (False, False), (True, True), (True, False)):
        group = [job for job in jobs if bool(job.after) == guided and trained(job) != training]
        ordered = sorted(group, key=lambda job: -len(job.tasks))
        if guided and training:
            guides = tuple(array.name for array in arrays if array.stage == "train")
        for start in range(0, len(ordered), limit):
            some = ordered[start : start + limit]
            after = f"train{number}" if training else ""
            if training:
                arrays.append(Array(after, "train", tuple(some)))
            parts = min(cluster.evaluation_jobs, len(some[0].tasks))
            for part in range(parts):
                dealt = [dataclasses.replace(job, tasks=job.tasks[part::parts]) for job in some]
                name = f"evaluate{number}" if parts == 1 else f"evaluate{number}.{part}"
                mine = tuple(job for job in dealt if job.tasks)
                earlier = dict.fromkeys(in_work[guide] for job in mine for guide in job.after if guide in in_work)
                arrays.append(Array(name, "evaluate", mine, after, guides, tuple(earlier)))
            number += 1
    return arrays


def submit(
    texts: Mapping[Request, str],
    arrays: Sequence[Array],
    cluster: Cluster,
    folders: Folders,
    facts: Mapping[str, Any],
) -> Submission:
    """Hand arrays to SLURM; where it refuses one, the others are cancelled and nothing is recorded as submitted.

    Raises:
        UsageError: SLURM's own words for what it refuses.
    """
    import submitit

    kept = {**facts, "cluster": dataclasses.asdict(cluster), "version": __version__, "sources": assets.sources_sha256()}
    submission = create(folders.runs, kept, arrays)
    numbers: dict[str, tuple[str, int]] = {}
    try:
        with slurm.clean_environment() as removed:
            submission.facts["removed_variables"] = removed
            for array in arrays:
                executor = submitit.SlurmExecutor(
                    submission.folder / array.name / "%j", max_num_timeout=RESTARTS, python=python(cluster)
                )
                executor.update_parameters(**parameters(array, cluster, submission, numbers))
                calls = [Call(text) for text in _payloads(array, submission, texts, folders, cluster)]
                with executor.batch():
                    made = [executor.submit(call) for call in calls]
                number = made[0].job_id.split("_")[0]
                numbers[array.name] = (number, len(calls))
                submission.accept(array.name, number)
    except submitit.core.utils.FailedJobError as error:
        _withdraw(submission, numbers)
        raise UsageError(f"SLURM refuses: {slurm.own_words(str(error))} (nothing was submitted)") from None
    except BaseException:
        _withdraw(submission, numbers)
        raise
    return submission


def _payloads(
    array: Array, submission: Submission, texts: Mapping[Request, str], folders: Folders, cluster: Cluster
) -> list[str]:
    members = [m for m in submission.members() if m.array == array.name]
    told = [dataclasses.replace(m, job=with_texts(m.job, texts)) for m in members]
    return [payload(member, folders, cluster.requeue) for member in told]


def _withdraw(submission: Submission, numbers: dict[str, tuple[str, int]]) -> None:
    for number, _ in numbers.values():
        slurm.call("scancel", number)
    shutil.rmtree(submission.folder, ignore_errors=True)


def scripts(arrays: Sequence[Array], cluster: Cluster, folders: Folders) -> dict[str, str]:
    """The batch scripts that `submit` would hand to sbatch, with placeholders for names that do not exist yet."""
    from submitit.slurm import slurm as backend

    submission = Submission(folders.runs / "submissions" / "SUBMISSION", {}, tuple(arrays))
    numbers = {array.name: (f"JOB_OF_{array.name}", len(array.jobs)) for array in arrays}
    found = {}
    for array in arrays:
        folder = submission.folder / array.name / "%j"
        command = f"{python(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        asked = parameters(array, cluster, submission, numbers)
        count = len(array.jobs) if len(array.jobs) > 1 else None
        found[array.name] = backend._make_sbatch_string(command=command, folder=folder, map_count=count, **asked)
    return found


def python(cluster: Cluster) -> str:
    """The command that starts the interpreter of a job, with USR2 blocked until the job can handle it."""
    return f"{interpreter(cluster)} -c {shlex.quote(BLOCKING)}"


def interpreter(cluster: Cluster) -> str:
    """The interpreter of a job's processes, inside its container."""
    words = [cluster.container] if cluster.container else []
    return " ".join([*words, shlex.quote(cluster.python or sys.executable)])


def parameters(
    array: Array, cluster: Cluster, submission: Submission, numbers: dict[str, tuple[str, int]]
) -> dict[str, Any]:
    """What submitit is told about an array; numbers: job number and size of the arrays before it."""
    more: dict[str, Any] = {
        "requeue" if cluster.requeue != "never" else "no-requeue": True,
        "chdir": str(submission.folder),
        **cluster.sbatch,
    }
    told: dict[str, Any] = {
        "job_name": f"repro-{array.name}",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes if array.stage == "train" else cluster.evaluation_nodes,
        "ntasks_per_node": cluster.processes,
        "cpus_per_task": cluster.cpus,
        "gpus_per_node": cluster.gpus_per_node or None,
        "time": cluster.timeout,
        "signal_delay_s": cluster.signal_delay,
        "array_parallelism": cluster.array_parallelism,
        "comment": comment(submission.id, array.name),
        "setup": _setup(cluster, submission.folder),
        "teardown": _teardown(cluster, submission.folder, array.name),
        "srun_args": [f"--cpus-per-task={cluster.cpus}", "--kill-on-bad-exit=1", *cluster.srun],
    }
    if cluster.mem_gb is not None:
        more["mem"] = f"{round(cluster.mem_gb * 1024)}M"
    waits = [_dependency(*numbers[array.after], len(array.jobs))] if array.after else []
    waits += [f"afterok:{numbers[name][0]}" for name in array.guides if name != array.after]
    waits += [f"afterok:{job}" for job in array.earlier]
    if waits:
        told["dependency"] = ",".join(waits)
        more["kill-on-invalid-dep"] = "yes"
    told["additional_parameters"] = more
    return {name: value for name, value in told.items() if value is not None}


def _dependency(number: str, size: int, members: int) -> str:
    """After the member of equal index has succeeded. Arrays of one are jobs, which have no members."""
    if size > 1 and members > 1:
        return f"aftercorr:{number}"
    return f"afterok:{number}_0" if size > 1 else f"afterok:{number}"


def _setup(cluster: Cluster, folder: Path) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return [*cluster.setup, *exports, f"cd {shlex.quote(str(folder))}"]


def _teardown(cluster: Cluster, folder: Path, array: str) -> list[str]:
    end = f"{interpreter(cluster)} -m repro.launch.slurm_end $code {shlex.quote(str(folder))} {array}"
    return ["code=$?", end, "exit $code"]


def check_folders(cluster: Cluster, folders: Folders) -> None:
    """Refuse folders that no node sees. Asks SLURM nothing."""
    for name, folder in (("runs", folders.runs), ("data", folders.data), ("weights", folders.weights)):
        if folder is None or not cluster.shared:
            continue
        if not any(folder.is_relative_to(Path(shared).resolve()) for shared in cluster.shared):
            raise UsageError(
                f"the folder of {name} {folder} is in none of Cluster.shared ({', '.join(cluster.shared)}): the nodes "
                f"do not see it; choose another with --{name}"
            )


def check_size(cluster: Cluster) -> None:
    """Refuse a profile that asks more than its partition has: SLURM would take several such jobs and start none."""
    if not cluster.partition:
        return
    sizes = [size for size in map(slurm.partition, cluster.partition.split(",")) if size is not None]
    if not sizes:
        return
    asked: dict[str, tuple[float, float, str]] = {
        "nodes": (max(cluster.nodes, cluster.evaluation_nodes), max(s.nodes for s in sizes), "nodes"),
        "cpus": (cluster.cpus * cluster.processes, max(s.cpus for s in sizes), "cores a node"),
        "mem_gb": ((cluster.mem_gb or 0) * 1024, max(s.memory_mb for s in sizes), "MB a node"),
        "gpus_per_node": (cluster.gpus_per_node, max(s.gpus for s in sizes), "GPUs a node"),
    }
    minutes = [size.minutes for size in sizes]
    if None not in minutes:
        asked["timeout"] = (cluster.timeout, max(m for m in minutes if m is not None), "minutes")
    for key, (wanted, there, unit) in asked.items():
        if wanted > there:
            raise UsageError(
                f"Cluster.{key} asks for {wanted:g} {unit}, and partition {cluster.partition} has {there:g}"
            )


def array_limit(cluster: Cluster) -> int:
    """Greatest number of members of one array: the profile's, and SLURM's own MaxArraySize."""
    allowed = slurm.settings().get("MaxArraySize", "")
    return min(cluster.array_size, int(allowed)) if allowed.isdigit() and int(allowed) else cluster.array_size


def member_log(member: Member, number: str, rank: int = 0, kind: str = "out") -> Path:
    """The log of one process of a member."""
    job = member.job_id(number)
    return member.folder / member.array / job / f"{job}_{rank}_log.{kind}"

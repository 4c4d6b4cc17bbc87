"""What was submitted to SLURM, as files below the runs folder that every login node can read.

    runs/submissions/<id>/submission.json            what it is made of; written before sbatch is called
                          <array>.job.json           the array's job number; written after
                          <array>/<job>/             submitit's files of one job: script, pickle, logs
                          attempts/<member>/         what each run of a member did (see `attempts`)
                          cancelled-*.json           members that were cancelled on purpose

An array is a list of members, one a trajectory; a member is named `<array>-<index>`. A submission that died between
sbatch and the second file is healed from the comment that every job carries.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from repro.errors import CorruptData
from repro.files import make_folder, write_json
from repro.identity import SHORT
from repro.launch.plan import Job, Request, Task
from repro.launch.slurm import Queued

FOLDER = "submissions"
Stage = Literal["train", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One job of an array: a stage of a trajectory's work."""

    folder: Path
    array: str
    index: int
    of: int
    stage: Stage
    job: Job

    @property
    def name(self) -> str:
        return f"{self.array}-{self.index}"

    @property
    def attempts(self) -> Path:
        """Folder of what its runs did."""
        return self.folder / "attempts" / self.name

    @property
    def run(self) -> str:
        """Folder name of its trajectory under the runs."""
        return self.job.trajectory_hash[:SHORT]

    def job_id(self, number: str) -> str:
        """SLURM's name for it: a member of an array, or the job alone. (A list of one is no array.)"""
        return f"{number}_{self.index}" if self.of > 1 else number


@dataclasses.dataclass(frozen=True)
class Array:
    """Members that one sbatch submits; `after`: the array whose members of equal index must have succeeded, or '';
    guides: arrays that must have succeeded as a whole, because they train guides of these members; earlier: jobs of
    earlier submissions that must have succeeded for the same reason."""

    name: str
    stage: Stage
    jobs: tuple[Job, ...]
    after: str = ""
    guides: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Submission:
    """One `repro submit`."""

    folder: Path
    facts: dict[str, Any]
    arrays: tuple[Array, ...]

    @property
    def id(self) -> str:
        return self.folder.name

    def members(self) -> Iterator[Member]:
        """All its jobs, training first."""
        for array in self.arrays:
            for index, job in enumerate(array.jobs):
                yield Member(self.folder, array.name, index, len(array.jobs), array.stage, job)

    def number(self, array: str, queue: Mapping[str, Queued]) -> str | None:
        """The job number of an array; None where sbatch never accepted it.

        Without the file that says so the queue's comments are searched, and the file is written.
        """
        path = self.folder / f"{array}.job.json"
        try:
            return str(json.loads(path.read_bytes())["job"])
        except (OSError, ValueError, KeyError):
            pass
        for job, queued in queue.items():
            if queued.comment == comment(self.id, array):
                self.accept(array, job.split("_")[0])
                return job.split("_")[0]
        return None

    def accept(self, array: str, number: str) -> None:
        """Note that SLURM took an array under this job number."""
        write_json(self.folder / f"{array}.job.json", {"job": number, "time": time.time()})

    def cancelled(self) -> set[str]:
        """Names of the members that were cancelled on purpose."""
        found: set[str] = set()
        for path in self.folder.glob("cancelled-*.json"):
            found |= set(json.loads(path.read_bytes())["members"])
        return found

    def note_cancelled(self, members: Iterable[str]) -> None:
        """Remember a cancellation: SLURM forgets members that never ran."""
        write_json(
            self.folder / f"cancelled-{uuid.uuid4().hex[:8]}.json", {"members": sorted(members), "time": time.time()}
        )


def comment(submission: str, array: str) -> str:
    """What the jobs of an array carry as their comment."""
    return f"repro:{submission}:{array}"


def create(runs: Path, facts: Mapping[str, Any], arrays: Sequence[Array]) -> Submission:
    """Write a new submission; nothing has been asked of SLURM yet."""
    now = datetime.datetime.now(datetime.UTC)
    folder = make_folder(runs / FOLDER / f"{now:%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:4]}")
    content = {**facts, "created": now.isoformat(timespec="seconds"), "arrays": [_array_to_plain(a) for a in arrays]}
    write_json(folder / "submission.json", content)
    return Submission(folder, content, tuple(arrays))


def read_all(runs: Iterable[Path], say: Callable[[str], None] | None = None) -> list[Submission]:
    """All submissions below some folders of runs, oldest first.

    say: is told of a file that is not whole, and the submission is left out; None raises CorruptData.
    """
    folders = [path.parent for top in runs for path in (top / FOLDER).glob("*/submission.json")]
    found = []
    for folder in sorted(folders, key=lambda folder: folder.name):
        try:
            found.append(read(folder))
        except CorruptData as error:
            if say is None:
                raise
            say(f"not shown: {error}")
    return found


def read(folder: Path) -> Submission:
    """One submission. CorruptData where its file is not whole."""
    try:
        facts = json.loads((folder / "submission.json").read_bytes())
        return Submission(folder, facts, tuple(_array_from_plain(array) for array in facts["arrays"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(
            f"{folder / 'submission.json'}: not a whole submission of repro ({error}); `squeue --me` has its jobs, and "
            "without this folder it is as if it had never been submitted"
        ) from None


def job_to_plain(job: Job) -> dict[str, Any]:
    """A job as JSON values; a request (with its text) is written once, tasks name it by its place."""
    requests = list(dict.fromkeys([*job.wanted, *(task.request for task in job.tasks)]))
    place = {request: index for index, request in enumerate(requests)}
    return {
        "trajectory": job.trajectory_hash,
        "requests": [dataclasses.astuple(request) for request in requests],
        "wanted": [place[request] for request in job.wanted],
        "tasks": [[place[t.request], t.evaluation_hash, t.milestone, t.range, t.preview] for t in job.tasks],
        "after": list(job.after),
    }


def job_from_plain(content: Mapping[str, Any]) -> Job:
    """The job that `job_to_plain` was given."""
    requests = [
        Request(cell, scale, tuple(bindings), seed, tuple(imported), text)
        for cell, scale, bindings, seed, imported, text in content["requests"]
    ]
    tasks = tuple(Task(requests[at], *rest) for at, *rest in content["tasks"])
    wanted = tuple(requests[at] for at in content["wanted"])
    return Job(content["trajectory"], wanted, tasks, tuple(content["after"]))


def _array_to_plain(array: Array) -> dict[str, Any]:
    jobs = [job_to_plain(without_text(job)) for job in array.jobs]
    return {**dataclasses.asdict(dataclasses.replace(array, jobs=())), "jobs": jobs}


def _array_from_plain(content: Mapping[str, Any]) -> Array:
    jobs = tuple(job_from_plain(job) for job in content["jobs"])
    waits = (tuple(content[name]) for name in ("guides", "earlier"))
    return Array(content["name"], content["stage"], jobs, content["after"], *waits)


def without_text(job: Job) -> Job:
    """The job without the texts of its configurations, which only the workers need."""
    return with_texts(job, {})


def with_texts(job: Job, texts: Mapping[Request, str]) -> Job:
    """The job with the texts of its configurations."""

    def told(request: Request) -> Request:
        plain = dataclasses.replace(request, text="")
        return dataclasses.replace(plain, text=texts.get(plain, ""))

    tasks = tuple(dataclasses.replace(task, request=told(task.request)) for task in job.tasks)
    return dataclasses.replace(job, wanted=tuple(told(request) for request in job.wanted), tasks=tasks)

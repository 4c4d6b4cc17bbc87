"""What must be computed: the smallest set of trajectories and evaluations that some cells need, less what is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from repro.cells import Resolved, resolve, resolve_text
from repro.errors import CorruptData, MissingPrerequisite
from repro.results.records import read_record, record_path
from repro.tables import Cell, find_cell


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where things lie: `runs` is written (and read first), `also` is read too; prepared data; users' weight files."""

    runs: Path
    also: tuple[Path, ...]
    data: Path
    weights: Path | None

    @property
    def readable(self) -> list[Path]:
        return [self.runs, *self.also]


@dataclasses.dataclass(frozen=True)
class Request:
    """One replicate of a cell, in words that a worker can resolve anew.

    text: the whole configuration, where later edits of the files must not reach the worker; '' reads the files.
    """

    cell: str
    scale: str
    bindings: tuple[str, ...]
    seed: int
    text: str = ""

    def resolve(self) -> Resolved:
        if self.text:
            return resolve_text(find_cell(self.cell), self.text, seed=self.seed)
        return resolve(find_cell(self.cell), self.scale, self.bindings, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation to make: of a request, at a milestone (images), over a sampling range."""

    request: Request
    evaluation_hash: str
    milestone: int
    range: int


@dataclasses.dataclass(frozen=True)
class Job:
    """One trajectory and the evaluations on it that are missing.

    wanted: every request that shares the trajectory; the training run keeps what all of them need.
    """

    trajectory_hash: str
    wanted: tuple[Request, ...]
    tasks: tuple[Task, ...]

    @property
    def title(self) -> str:
        """For progress lines: the first cell that needs it, and the replicate."""
        request = self.tasks[0].request if self.tasks else self.wanted[0]
        return f"{request.cell.split('/', 2)[2]} seed {request.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """jobs: what is missing, one a trajectory; done: evaluations with a record; problems: unusable record files."""

    jobs: list[Job]
    done: int
    problems: list[str]

    @property
    def missing(self) -> int:
        return sum(len(job.tasks) for job in self.jobs)


def make_plan(
    cells: Sequence[Cell], scale: str, bindings: Sequence[str], seeds: Iterable[int], runs: Sequence[Path]
) -> Plan:
    """Plan some replicates of some cells.

    Args:
        cells: the cells; those of equal trajectories share a job.
        seeds: training seeds.
        runs: folders to look for records in.
    """
    wanted: dict[str, list[Request]] = {}
    tasks: dict[str, list[Task]] = {}
    done = 0
    problems: list[str] = []
    seen: set[tuple[str, int, int]] = set()
    for cell in cells:
        base = resolve(cell, scale, bindings)
        for seed in seeds:
            resolved = base.with_seed(seed)
            request = Request(cell.name, scale, tuple(bindings), seed)
            wanted.setdefault(resolved.trajectory_hash, []).append(request)
            selection = resolved.selection()
            for milestone in selection.milestones():
                for k in range(selection.ranges):
                    key = (resolved.evaluation_hash, milestone, k)
                    if key in seen:
                        continue
                    seen.add(key)
                    if has_record(runs, resolved, milestone, k, problems):
                        done += 1
                    else:
                        task = Task(request, resolved.evaluation_hash, milestone, k)
                        tasks.setdefault(resolved.trajectory_hash, []).append(task)
    jobs = [Job(name, tuple(wanted[name]), tuple(found)) for name, found in tasks.items()]
    return Plan(jobs, done, problems)


def has_record(runs: Sequence[Path], resolved: Resolved, milestone: int, k: int, problems: list[str]) -> bool:
    """Whether a whole record of this evaluation lies in one of the folders; `problems` gets a line for each other."""
    for folder in runs:
        path = record_path(folder, resolved.trajectory_hash, resolved.evaluation_hash, milestone, k)
        if not path.exists():
            continue
        try:
            if read_record(path).key == (resolved.evaluation_hash, milestone, k):
                return True
            problems.append(f"{path}: is a record of another evaluation")
        except CorruptData as error:
            problems.append(str(error))
    return False


def check_prerequisites(
    cells: Sequence[Cell],
    scale: str,
    bindings: Sequence[str],
    folders: Folders,
    train: bool,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Raise MissingPrerequisite, naming all that is missing, before hours are spent on the way to it.

    Where nothing is missing but extractor weights, they are fetched.
    """
    missing: dict[str, None] = {}
    protocols: dict[str, Any] = {}
    for cell in cells:
        resolved = resolve(cell, scale, bindings)
        if resolved.scale == "full" and cell.starred and not train:
            missing[
                f"{cell.name}: the paper evaluates published weights here, and this version cannot import any; "
                "--train trains the network instead, and the table says so"
            ] = None
        if resolved.dataset().source.form != "pixels":
            missing[
                f"{cell.name}: its images are latents, and this version cannot decode generated ones to score them"
            ] = None
        protocol = resolved.protocol()
        for line in protocol.missing(folders.weights):
            missing[line] = None
            protocols[line] = protocol
        for line in resolved.dataset().missing(folders.data):
            missing[line] = None
    fetchable = {line: protocol for line, protocol in protocols.items() if "doctor --download" in line}
    if fetchable.keys() == missing.keys():
        for protocol in fetchable.values():
            protocol.fetch(folders.weights, say)
    elif missing:
        raise MissingPrerequisite("; ".join(missing))

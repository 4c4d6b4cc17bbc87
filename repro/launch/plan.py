"""What must be computed: the smallest set of trajectories and evaluations that some cells need, less what is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro.cells import Leg, Resolved, resolve, resolve_text
from repro.config import build
from repro.errors import CorruptData, MissingPrerequisite
from repro.published import Imported, check_fits, import_commands, read_imported
from repro.results.records import read_record, record_path
from repro.selection import choose_candidate
from repro.tables import Cell, find_cell

CHOSEN = -1
"""In place of a milestone: that of the candidate which the previews choose."""


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

    imported: folders of imported weights, of the network and of its guide; none where they are trained. text: the whole
    configuration, where later edits of the files must not reach the worker; '' reads the files.
    """

    cell: str
    scale: str
    bindings: tuple[str, ...]
    seed: int
    imported: tuple[str, ...] = ()
    text: str = ""

    def resolve(self) -> Resolved:
        if self.text:
            resolved = resolve_text(find_cell(self.cell), self.text, seed=self.seed)
        else:
            resolved = resolve(find_cell(self.cell), self.scale, self.bindings, seed=self.seed)
        return resolved.with_imported(*(one.sha256 for one in self.published())) if self.imported else resolved

    def published(self) -> list[Imported]:
        """The imported checkpoints: of the network, then of its guide."""
        return [read_imported(Path(folder)) for folder in self.imported]


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation to make: of a request, at a milestone (images), over a sampling range.

    milestone: `CHOSEN` for the candidate that the previews choose; preview: whether this is one of those.
    """

    request: Request
    evaluation_hash: str
    milestone: int
    range: int
    preview: bool = False

    def resolve(self) -> Resolved:
        """The cell as this evaluation scores it."""
        resolved = self.request.resolve()
        preview = resolved.preview() if self.preview else None
        return resolved if preview is None else preview


@dataclasses.dataclass(frozen=True)
class Job:
    """One trajectory and the evaluations on it that are missing.

    wanted: every request that shares the trajectory; the training run keeps what all of them need. tasks: none for a
    run that only guides others; after: trajectories of other jobs that guide this one, which have to be there first.
    """

    trajectory_hash: str
    wanted: tuple[Request, ...]
    tasks: tuple[Task, ...]
    after: tuple[str, ...] = ()

    def legs(self) -> list[Leg]:
        """What each of `wanted` asks of the trajectory."""
        legs = [leg for request in self.wanted for leg in request.resolve().legs]
        return [leg for leg in legs if leg.trajectory_hash == self.trajectory_hash]

    @property
    def title(self) -> str:
        """For progress lines: the first cell that needs it, and the replicate."""
        request = self.tasks[0].request if self.tasks else self.wanted[0]
        role = "" if self.tasks else "guide of "
        which = "imported" if request.imported else f"seed {request.seed}"
        return f"{role}{request.cell.split('/', 2)[2]} {which}"


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
    cells: Sequence[Cell],
    scale: str,
    bindings: Sequence[str],
    seeds: Iterable[int],
    runs: Sequence[Path],
    published: Mapping[str, Sequence[Imported]] = {},
) -> Plan:
    """Plan some replicates of some cells.

    Args:
        cells: the cells; those of equal trajectories share a job.
        seeds: training seeds.
        runs: folders to look for records in.
        published: name of a cell -> imported weights, of the network and of its guide, that are evaluated in place of
            training them, once.

    Raises:
        UsageError: imported weights of another network than the cell's.
    """
    seeds = list(seeds)
    wanted: dict[str, list[Request]] = {}
    tasks: dict[str, list[Task]] = {}
    done = 0
    problems: list[str] = []
    seen: set[tuple[str, int, int]] = set()
    for cell in cells:
        imported = published.get(cell.name, ())
        places = tuple(str(one.folder) for one in imported)
        for resolved in replicates(cell, scale, bindings, seeds, imported):
            request = Request(cell.name, scale, tuple(bindings), resolved.seed, places)
            for leg in resolved.legs:
                wanted.setdefault(leg.trajectory_hash, []).append(request)
            for scored, task in _tasks(request, resolved):
                key = (task.evaluation_hash, task.milestone, task.range)
                if key in seen:
                    continue
                seen.add(key)
                milestone = place_of(runs, task)
                if milestone is not None and has_record(runs, scored, milestone, task.range, problems):
                    done += 1
                else:
                    tasks.setdefault(resolved.trajectory_hash, []).append(task)
    return Plan(_jobs(wanted, tasks, runs[0]), done, problems)


def replicates(
    cell: Cell, scale: str, bindings: Sequence[str], seeds: Iterable[int], imported: Sequence[Imported] = ()
) -> list[Resolved]:
    """What is computed of a cell: a replicate a training seed, or imported weights, once.

    Raises:
        UsageError: imported weights of another network than the cell's.
    """
    base = resolve(cell, scale, bindings)
    if not imported:
        return [base.with_seed(seed) for seed in seeds]
    check_fits(base, *imported)
    return [base.with_imported(*(one.sha256 for one in imported))]


def merged(plans: Sequence[Plan]) -> Plan:
    """One plan for all: jobs of one trajectory become one job."""
    jobs: dict[str, Job] = {}
    for job in (job for plan in plans for job in plan.jobs):
        known = jobs.setdefault(job.trajectory_hash, dataclasses.replace(job, wanted=(), tasks=(), after=()))
        jobs[job.trajectory_hash] = dataclasses.replace(
            known,
            wanted=(*known.wanted, *job.wanted),
            tasks=(*known.tasks, *job.tasks),
            after=tuple(dict.fromkeys((*known.after, *job.after))),
        )
    guides_first = sorted(jobs.values(), key=lambda job: bool(job.after))
    return Plan(guides_first, sum(plan.done for plan in plans), [line for plan in plans for line in plan.problems])


def _jobs(wanted: dict[str, list[Request]], tasks: dict[str, list[Task]], runs: Path) -> list[Job]:
    """One job a trajectory: first those that guide others and are still to be trained for it."""
    after: dict[str, dict[str, None]] = {name: {} for name in tasks}
    guides: dict[str, None] = {}
    for name, found in tasks.items():
        for request in dict.fromkeys(task.request for task in found):
            for leg in request.resolve().legs[1:]:
                if leg.trajectory_hash != name and not _is_trained(leg, runs):
                    after[name][leg.trajectory_hash] = None
                    guides[leg.trajectory_hash] = None
    names = [*guides, *(name for name in tasks if name not in guides)]
    return [Job(name, tuple(wanted[name]), tuple(tasks.get(name, ())), tuple(after.get(name, ()))) for name in names]


def _is_trained(leg: Leg, runs: Path) -> bool:
    """Whether the snapshots that a guide's average needs lie in the folder of runs."""
    if not (runs / leg.run).is_dir():
        return False
    from repro.training import snapshots  # imports torch, and so does what `build` looks into

    files = snapshots.needed(runs / leg.run, build(leg.ema), leg.milestones)
    return all(file.exists() for file in files)


def _tasks(request: Request, resolved: Resolved) -> Iterator[tuple[Resolved, Task]]:
    """All evaluations of one replicate, each with the cell as it scores it; previews come first."""
    selection = resolved.selection()
    preview = resolved.preview()
    if preview is not None:
        for milestone in selection.milestones():
            yield preview, Task(request, preview.evaluation_hash, milestone, 0, preview=True)
    for milestone in selection.milestones() if preview is None else [CHOSEN]:
        for k in range(selection.ranges):
            yield resolved, Task(request, resolved.evaluation_hash, milestone, k)


def place_of(runs: Sequence[Path], task: Task) -> int | None:
    """The milestone of a task in images; None while the previews that choose it are not all there."""
    if task.milestone != CHOSEN:
        return task.milestone
    resolved = task.request.resolve()
    preview = resolved.preview()
    assert preview is not None
    values = {}
    for milestone in resolved.selection().milestones():
        for folder in runs:
            path = record_path(folder, preview.trajectory_hash, preview.evaluation_hash, milestone, 0)
            if milestone not in values and path.exists() and has_record([folder], preview, milestone, 0, []):
                values[milestone] = read_record(path).metrics[preview.metric].value
    return choose_candidate(resolved.selection(), values)


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


def scored_without_data(resolved: Resolved) -> bool:
    """Whether imported weights are scored without the data set: the reference is stored statistics, and no VAE, which
    the data set's manifest names, has to decode the images."""
    return bool(resolved.protocol().streamed) and resolved.dataset().source.form == "pixels"


def check_prerequisites(
    cells: Sequence[Cell],
    scale: str,
    bindings: Sequence[str],
    folders: Folders,
    train: bool,
    say: Callable[[str], None] = lambda line: None,
    published: Mapping[str, Sequence[Imported]] = {},
) -> None:
    """Raise MissingPrerequisite, naming all that is missing, before hours are spent on the way to it.

    Where nothing is missing but extractor weights, they are fetched. published: see `make_plan`.
    """
    from repro.data.decoding import missing_decoder  # heavy

    missing: dict[str, None] = {}
    unimported: dict[str, list[str]] = {}
    protocols: dict[str, Any] = {}
    for cell in cells:
        resolved = resolve(cell, scale, bindings)
        imported = cell.name in published
        if resolved.scale == "full" and cell.starred and not train and not imported:
            unimported.setdefault(import_commands(cell), []).append(cell.name)
            imported = True  # they will be, and no data are needed then
        resolved.check()
        for line in missing_decoder(resolved.dataset(), folders.data, folders.weights):
            missing[line] = None
        for line in resolved.missing_prompts(folders.data):
            missing[line] = None
        protocol = resolved.protocol()
        for line in protocol.missing(folders.weights):
            missing[line] = None
            protocols[line] = protocol
        if not (imported and scored_without_data(resolved)):
            for line in resolved.dataset().missing(folders.data):
                missing[line] = None
    for command, names in unimported.items():
        more = f" and {len(names) - 1} more cells" if len(names) > 1 else ""
        missing[
            f"{names[0]}{more}: the paper evaluates published weights here: {command} makes them usable; "
            "--train trains the network instead, and the table says so"
        ] = None
    fetchable = {line: protocol for line, protocol in protocols.items() if "doctor --download" in line}
    if fetchable.keys() == missing.keys():
        for protocol in fetchable.values():
            protocol.fetch(folders.weights, say)
    elif missing:
        raise MissingPrerequisite(*missing)

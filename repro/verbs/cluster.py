"""`repro submit`, `status`, `logs` and `cancel`: tables on a SLURM cluster."""

from __future__ import annotations

import argparse
import getpass
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.errors import CheckFailed, UsageError
from repro.files import make_folder
from repro.launch import slurm, slurm_submit
from repro.launch.claims import Owner, acquire, holder, how_to_release
from repro.launch.cluster import Cluster, load_cluster
from repro.launch.display import clock
from repro.launch.folders import trained_nimg
from repro.launch.plan import Folders, Job, Plan, Request, check_prerequisites, make_plan
from repro.launch.submissions import FOLDER, Array, Submission, read_all
from repro.launch.survey import CellState, Survey, survey, tail
from repro.published import import_commands
from repro.suggest import suggest
from repro.tables import Cell, find_cell, load_table, table_names
from repro.verbs.computing import folders
from repro.verbs.importing import published_folder
from repro.verbs.planning import chosen_tables, computable_cells, seeds

OTHER_SUBMIT_SECONDS = 120.0
"""How long a submission waits for another one of the same runs folder."""
COLUMNS = ("cell", "seed", "state", "records", "kimg", "img/s", "ETA", "loss", "job", "node")


def submit(options: argparse.Namespace) -> int:
    """Submit what some tables miss."""
    cluster = load_cluster(options.cluster)
    if not options.dry_run:
        slurm.need()
    options.published = published_folder(options).absolute()
    chosen, left_out, given = computable_cells(chosen_tables(options), options)
    where = absolute(folders(options, write=not options.dry_run))
    for cell in left_out:
        say(f"left out: {cell.name}: {import_commands(cell)} makes published weights usable (--train trains instead)")
    plan = make_plan(chosen, options.scale, options.gin, seeds(options), where.readable, given)
    for problem in plan.problems:
        say(f"not used: {problem}")
    if not plan.jobs:
        say(f"nothing to submit: all {plan.done} records are there" if plan.done else "nothing to submit")
        return 0
    slurm_submit.check_folders(cluster, where)
    if options.dry_run:
        return dry_run(plan, cluster, where)
    check_prerequisites(needed(chosen, plan), options.scale, options.gin, where, options.train, say, given)
    slurm_submit.check_size(cluster)
    with only_submitter(where.runs):
        return _submit(plan, cluster, where, options)


def _submit(plan: Plan, cluster: Cluster, where: Folders, options: argparse.Namespace) -> int:
    look = survey(read_all(where.readable))
    fresh, alone, failed = sort_jobs(plan.jobs, look, where)
    for job, why in [*alone, *failed]:
        say(f"{job.title}: {why}")
    jobs = [*fresh, *(job for job, _ in failed if options.retry)]
    left = failed if not options.retry else []
    if left:
        say(f"{len(left)} not submitted again: add --retry")
    if not jobs:
        say("nothing submitted")
        return 1 if left else 0
    arrays = slurm_submit.arrays_of(
        jobs, lambda job: is_trained(job, where), cluster, slurm_submit.array_limit(cluster), guides_in_work(jobs, look)
    )
    facts = {
        "tables": options.tables,
        "profile": options.cluster,
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "cells": cell_entries(jobs),
    }
    made = slurm_submit.submit(texts_of(jobs), arrays, cluster, where, facts)
    numbers = {array.name: made.number(array.name, {}) for array in arrays}
    if removed := made.facts.get("removed_variables"):
        say(f"not passed on to the jobs: {', '.join(removed)}")
    warn_of_pending(numbers, arrays)
    if options.json:
        print(json.dumps({"submission": made.id, "jobs": numbers, "trajectories": [j.trajectory_hash for j in jobs]}))
        return 1 if left else 0
    evaluations = sum(len(job.tasks) for job in jobs)
    print(
        f"submitted {len(jobs)} {'trajectory' if len(jobs) == 1 else 'trajectories'} with {evaluations} "
        f"evaluation{'s' * (evaluations > 1)}, as jobs "
        f"{', '.join(f'{number} ({name})' for name, number in numbers.items())}"
    )
    print("look at them with: repro status; repro logs CELL; repro cancel TABLE")
    return 1 if left else 0


def warn_of_pending(numbers: dict[str, str | None], arrays: Sequence[Array]) -> None:
    """Say which of the new jobs SLURM took, but will never start."""
    queue = slurm.queue()
    for array in arrays:
        for job, queued in queue.items():
            if job.split("_")[0] == numbers[array.name] and (hint := slurm.HINTS.get(queued.reason)):
                say(f"{job} waits for ever: {queued.reason} ({hint}); cancel it and change the profile")
                break


def needed(cells: Sequence[Cell], plan: Plan) -> list[Cell]:
    """The cells of which something is missing."""
    names = {request.cell for job in plan.jobs for request in job.wanted}
    return [cell for cell in cells if cell.name in names]


def dry_run(plan: Plan, cluster: Cluster, where: Folders) -> int:
    """Print the batch scripts; asks SLURM nothing."""
    arrays = slurm_submit.arrays_of(plan.jobs, lambda job: is_trained(job, where), cluster, cluster.array_size)
    counts = {array.name: len(array.jobs) for array in arrays}
    for name, script in slurm_submit.scripts(arrays, cluster, where).items():
        print(f"# {name}: {counts[name]} job{'s' * (counts[name] > 1)}\n{script}")
    return 0


def only_submitter(runs: Path) -> Any:
    """The claim on all submissions of a runs folder: two shells at once never submit a trajectory twice."""
    folder = make_folder(runs / FOLDER)
    deadline = time.monotonic() + OTHER_SUBMIT_SECONDS
    said = False
    while True:
        claim = acquire(folder)
        if not isinstance(claim, Owner):
            return claim
        if time.monotonic() > deadline:
            raise CheckFailed(f"{claim} is submitting to {runs}; {how_to_release(folder)}")
        if not said:
            say(f"waits for {claim}, which is submitting to {runs}")
            said = True
        time.sleep(0.2)


def sort_jobs(
    jobs: Sequence[Job], look: Survey, where: Folders
) -> tuple[list[Job], list[tuple[Job, str]], list[tuple[Job, str]]]:
    """(never submitted, in somebody's hands, failed or cancelled), the latter two with what is so."""
    fresh: list[Job] = []
    alone: list[tuple[Job, str]] = []
    failed: list[tuple[Job, str]] = []
    for job in jobs:
        states = look.trajectory(job.trajectory_hash)
        active = [state for _, _, state in states if state.active]
        ended = [state for _, _, state in states if state.kind in ("failed", "cancelled")]
        owner = holder(where.runs / job.trajectory_hash[:16])
        if active:
            alone.append((job, f"is {active[0].kind} as job {active[0].job}"))
        elif owner is not None:
            alone.append((job, f"is being computed by {owner}"))
        elif ended:
            failed.append((job, f"{ended[0].kind} (job {ended[0].job or '-'}): {ended[0].reason}"))
        else:
            fresh.append(job)
    return fresh, alone, failed


def guides_in_work(jobs: Sequence[Job], look: Survey) -> dict[str, str]:
    """Trajectory hash -> the job of an earlier submission that trains it, of guides that some jobs have to wait for."""
    return {
        name: state.job
        for name in dict.fromkeys(name for job in jobs for name in job.after)
        for _, member, state in look.trajectory(name)
        if member.stage == "train" and state.active
    }


def is_trained(job: Job, where: Folders) -> bool:
    """Whether every weight that a job's evaluations need is there."""
    run = where.runs / job.trajectory_hash[:16]
    if job.wanted[0].imported:
        return True
    if trained_nimg(run) == 0 and not (run / "ema").is_dir():
        return False
    from repro.launch.work import has_weights  # heavy; only where there is something to look at

    return has_weights(job, run)


def texts_of(jobs: Sequence[Job]) -> dict[Request, str]:
    """The whole configuration of every request, which travels with the job."""
    requests = {request for job in jobs for request in [*job.wanted, *(task.request for task in job.tasks)]}
    return {request: request.resolve().text for request in requests}


def cell_entries(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What a submission says about its cells."""
    return [
        {
            "cell": request.cell,
            "scale": request.scale,
            "seed": request.seed,
            "trajectory": job.trajectory_hash,
            "evaluation": request.resolve().evaluation_hash,
        }
        for job in jobs
        for request in job.wanted
        if request.resolve().trajectory_hash == job.trajectory_hash  # not of those whose guide it is
    ]


def status(options: argparse.Namespace) -> int:
    """How everything stands that was submitted; with --watch again and again."""
    where = absolute(folders(options, write=False))
    while True:
        submissions = submissions_with(options.table, where)
        states = chosen_states(survey(submissions).cells(), options.table)
        if options.json:
            print(json.dumps([as_json(state) for state in states], indent=1), flush=True)
        else:
            clear = "\033[H\033[2J" if options.watch and sys.stdout.isatty() else ""
            print(f"{clear}{render(states)}", flush=True)
        over = not any(state.state in ("pending", "training", "sampling") for state in states)
        if not options.watch or over:
            return 1 if any(state.state in ("failed", "cancelled") for state in states) else 0
        time.sleep(options.watch)


def submissions_with(name: str | None, where: Folders) -> list[Submission]:
    """Everything that was submitted. UsageError, before SLURM is asked, where nothing of a paper, table, row or cell
    was."""
    submissions = read_all(where.readable, say)
    cells = {entry["cell"] for submission in submissions for entry in submission.facts["cells"]}
    if name is None or any(is_of(cell, name) for cell in cells):
        return submissions
    known = {cell.name for table in table_names() for cell in load_table(table).cells}
    if not any(is_of(cell, name) for cell in known):
        parts = {"/".join(cell.split("/")[:depth]) for cell in known | cells for depth in range(1, 5)}
        raise UsageError(f"no paper, table, row or cell {name!r}{suggest(name, sorted(parts))}")
    raise UsageError(f"nothing of {name!r} was submitted to this folder of runs (`repro status` shows what was)")


def is_of(cell: str, name: str) -> bool:
    """Whether a cell is the one of a name, or of its paper, table or row."""
    return f"{cell}/".startswith(f"{name.rstrip('/')}/")


def chosen_states(states: Sequence[CellState], name: str | None) -> list[CellState]:
    """Those of a paper, table, row or cell, or all."""
    return [state for state in states if name is None or is_of(state.cell, name)]


def as_json(state: CellState) -> dict[str, Any]:
    """One cell of `status --json`."""
    plain = ("cell", "scale", "seed", "state", "reason", "records", "wanted", "job", "node", "restarts", "progress")
    return {
        **{name: getattr(state, name) for name in plain},
        "run": state.run.name,
        "left_seconds": state.left_seconds,
        "submission": state.submission.id,
    }


def render(states: Sequence[CellState]) -> str:
    """An aligned table, the counts, and the reasons of what did not go well."""
    from tabulate import tabulate

    if not states:
        return "nothing was submitted to this folder of runs"
    rows = [_row(state) for state in states]
    lines = [tabulate(rows, COLUMNS, tablefmt="simple", disable_numparse=True)]
    counts: dict[str, int] = {}
    for state in states:
        counts[state.state] = counts.get(state.state, 0) + 1
    lines.append(", ".join(f"{count} {name}" for name, count in counts.items()))
    for state in states:
        if state.reason and state.state != "done":
            lines.append(f"{state.cell} seed {state.seed}: {state.reason}")
    return "\n".join(lines)


def _row(state: CellState) -> list[str]:
    progress = state.progress or {}
    running = state.state == "training"
    kimg = f"{progress['nimg'] / 1000:.1f}/{progress['total'] / 1000:.1f}" if progress else ""
    left = state.left_seconds
    return [
        state.cell,
        str(state.seed),
        state.state,
        f"{state.records}/{state.wanted}",
        kimg,
        f"{progress['img_per_sec']:.0f}" if running and progress else "",
        clock(left) if left is not None else "",
        f"{progress['loss']:.4g}" if running and progress.get("loss") is not None else "",
        state.job,
        state.node,
    ]


def logs(options: argparse.Namespace) -> int:
    """Print the end of the newest log of a cell's jobs."""
    find_cell(options.cell)
    where = absolute(folders(options, write=False))
    look = survey(submissions_with(options.cell, where))
    states = [s for s in chosen_states(look.cells(), options.cell) if options.seed in (None, s.seed)]
    if not states:
        raise UsageError(f"no replicate of seed {options.seed} of {options.cell} was submitted")
    state = states[0]
    found = []
    for member in state.members:
        number = look.number(state.submission, member.array)
        if number is None or options.stage not in (None, member.stage):
            continue
        for kind in ("out", "err"):
            path = slurm_submit.member_log(member, number, options.rank, kind)
            if path.exists():
                found.append(path)
    if not found:
        raise CheckFailed(
            f"{options.cell} seed {state.seed} has no log yet: it is {state.state} {state.reason}".strip()
        )
    for path in found:
        print(f"==> {path}")
        print("\n".join(tail(path, options.lines, 200 * options.lines)))
    if options.follow:
        follow(max(found, key=lambda path: path.stat().st_mtime))
    return 0


def follow(path: Path) -> None:
    """Print what is appended to a log, until Ctrl-C."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        stream.seek(0, 2)
        while True:
            text = stream.read()
            if text:
                print(text, end="", flush=True)
            else:
                time.sleep(0.5)


def cancel(options: argparse.Namespace) -> int:
    """Cancel the jobs of a table, row or cell; a job that other cells need too stays."""
    if options.all == bool(options.name):
        raise UsageError("name a table or cell, such as edm/table2, or --all")
    where = absolute(folders(options, write=False))
    look = survey(submissions_with(options.name, where))
    states = look.cells()
    chosen = chosen_states(states, options.name)
    kept = {(m.folder, m.name) for s in states if s not in chosen and s.state != "done" for m in s.members}
    doomed: dict[str, list[str]] = {}
    jobs: list[str] = []
    seen = set()
    for state in chosen:
        for member in state.members:
            key = (member.folder, member.name)
            if key in kept or key in seen or not look.state(state.submission, member).active:
                continue
            seen.add(key)
            number = look.number(state.submission, member.array)
            assert number is not None, "an active job has a number"
            doomed.setdefault(state.submission.id, []).append(member.name)
            jobs.append(member.job_id(number))
    for submission in look.submissions:
        if submission.id in doomed:
            submission.note_cancelled(doomed[submission.id])
    for start in range(0, len(jobs), 200):
        slurm.ask("scancel", *jobs[start : start + 200])
    print(f"cancelled {len(jobs)} jobs" if jobs else "nothing is pending or running there")
    return 0


def absolute(where: Folders) -> Folders:
    """The same folders by their absolute names, which the nodes understand."""
    return Folders(
        where.runs.resolve(),
        tuple(folder.resolve() for folder in where.also),
        where.data.resolve(),
        where.weights.resolve() if where.weights else None,
    )


def say(text: str) -> None:
    """A line for people, beside what is printed for programs."""
    print(text, file=sys.stderr, flush=True)

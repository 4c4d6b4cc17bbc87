"""`repro run` and `repro reproduce`: compute what is missing, then show it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repro.cells import resolve
from repro.errors import CheckFailed, UsageError
from repro.files import make_folder
from repro.launch.plan import Folders, Plan, check_prerequisites, make_plan, merged
from repro.results.collect import collect
from repro.tables import Cell, find_cell, load_table
from repro.verbs import reporting
from repro.verbs.published import Given, published_for, weights_of

if TYPE_CHECKING:
    from repro.launch.local import Failure

ASK_ABOVE_HOURS = 1.0

WORLD_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def first_process() -> bool:
    """Whether this process is the one that prints, among those that torchrun or a SLURM step started."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def folders(options: argparse.Namespace, *, write: bool) -> Folders:
    """The folders of a command line: options, then environment variables, then ./runs, ./data and PyTorch's cache.

    Raises:
        UsageError: a folder of runs is a file, or cannot be written where `write` says that it will be.
    """
    runs = options.runs or [Path(os.environ.get("REPRO_RUNS", "runs"))]
    data = options.data or Path(os.environ.get("REPRO_DATA", "data"))
    weights = options.weights or (Path(os.environ["REPRO_WEIGHTS"]) if "REPRO_WEIGHTS" in os.environ else None)
    for folder in runs:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--runs {folder}: this is a file, not a folder of runs")
    if write:
        make_folder(runs[0])
    for folder in runs:
        if not folder.is_dir():
            print(f"no folder {folder}: no record is read there", file=sys.stderr)
    return Folders(runs[0], tuple(runs[1:]), data, weights)


def chosen_cells(options: argparse.Namespace, name: str | None = None) -> list[Cell]:
    """The cells that --rows and --columns name, of the command's table or another; without --columns, below full, the
    table's default columns.
    """
    table = load_table(name or options.table)
    columns = options.columns or (None if options.scale == "full" else list(table.mini_columns))
    return table.select(options.rows, columns)


def computable_cell(name: str) -> Cell:
    """The cell of a name. UsageError where the paper's value can only be quoted."""
    cell = find_cell(name)
    if cell.reference_only:
        values = ", ".join(f"{metric} {value:g}" for metric, value in cell.reference.items())
        raise UsageError(f"{cell.name} is reference only (the paper's {values}): {cell.reference_only}")
    return cell


def run(options: argparse.Namespace) -> int:
    """Compute the missing records of one cell and say what they are."""
    cell = computable_cell(options.cell)
    where = compute([cell], options)
    if not first_process():
        return 0
    table = load_table(cell.table)
    collection = collect(table, options.scale, where.readable, [cell], options.gin, weights_of(options))
    reporting.print_cells(collection, options.json)
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Compute what a table misses, print the table and write it beside the runs."""
    cells = chosen_cells(options)
    where = compute([cell for cell in cells if not cell.reference_only], options)
    if not first_process():
        return 0
    table = load_table(options.table)
    collection = collect(table, options.scale, where.readable, cells, options.gin, weights_of(options))
    text = reporting.text(collection, options, where)
    print(text)
    name = f"{options.table.replace('/', '_', 1)}.{options.scale}.{options.format}"
    reporting.write(options.out or where.runs / name, text)
    return 0


Variants = Sequence[Sequence[str]]
"""Bindings beside those of `--gin`; each computes the cells anew, and equal trajectories are trained once."""


def compute(cells: Sequence[Cell], options: argparse.Namespace, variants: Variants = ((),)) -> Folders:
    """Make every missing record of some cells.

    Raises:
        CheckFailed: a job failed.
        KeyboardInterrupt: it was stopped.
    """
    where = folders(options, write=True)
    if weights_of(options) == "published":
        found = [published_for(cells, options, [*options.gin, *extra], first_process()) for extra in variants]
        cells = [cell for cell in cells if any(cell.name in given for given in found)]
    if cells and any(int(os.environ.get(name, "1")) > 1 for name in WORLD_SIZES):
        return _compute_together(cells, options, variants, where)
    plan = _plan(cells, options, variants, where)
    if plan.jobs:
        from repro.launch.display import display  # these take a second that "nothing to compute" need not wait for
        from repro.launch.local import LocalExecutor, cores

        workers = min(options.jobs or cores(), len(plan.jobs))
        _announce(plan, where, f"{workers} at a time")
        with display(len(plan.jobs)) as shown:
            executor = LocalExecutor(where, workers, shown)
            failures = executor.run(plan.jobs)
        _conclude(failures, executor.interrupted, options)
    return where


def _plan(cells: Sequence[Cell], options: argparse.Namespace, variants: Variants, where: Folders) -> Plan:
    """What is missing, once it is certain that it can be computed and is wanted; says so where nothing is."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    published: Given = {}
    plans = []
    for extra in variants:
        bindings = [*options.gin, *extra]
        published = published_for(cells, options, bindings)
        plans.append(make_plan(cells, options.scale, bindings, seeds, where.readable, published))
    plan = merged(plans)
    for problem in plan.problems:
        print(f"not used: {problem}", file=sys.stderr)
    if plan.jobs:
        check_prerequisites(
            cells,
            options.scale,
            options.gin,
            where,
            options.train,
            lambda line: print(line, file=sys.stderr),
            published,
        )
        confirm(plan, options)
    elif not plan.done:
        print("nothing to compute: these cells are reference only", file=sys.stderr)
    else:
        there = "the record is" if plan.done == 1 else f"all {plan.done} records are"
        print(f"nothing to compute: {there} there", file=sys.stderr)
    return plan


def _compute_together(
    cells: Sequence[Cell], options: argparse.Namespace, variants: Variants, where: Folders
) -> Folders:
    """The same by all processes that torchrun, or a SLURM step, started: each trajectory is trained by all of them."""
    import torch

    from repro.launch.display import display
    from repro.launch.ranks import RankExecutor
    from repro.training.distributed import from_environment, joined

    world = from_environment()
    cpu = (
        not torch.cuda.is_available() or resolve(cells[0], options.scale, options.gin).execution.args["device"] == "cpu"
    )
    with joined(world, "cpu" if cpu else "cuda"):
        plan = world.from_first(_plan(cells, options, variants, where) if world.first else None)
        if plan.jobs:
            if world.first:
                _announce(plan, where, f"each by {world.size} processes")
            with display(len(plan.jobs)) if world.first else contextlib.nullcontext() as shown:
                executor = RankExecutor(where, world, shown)
                failures = executor.run(plan.jobs)
            _conclude(failures, executor.interrupted, options)
    return where


def _announce(plan: Plan, where: Folders, how: str) -> None:
    imported = sum(bool(job.wanted[0].imported) for job in plan.jobs)
    counts = ((len(plan.jobs) - imported, "training run"), (imported, "imported network"))
    runs = " and ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count)
    runs += f", {how}" if len(plan.jobs) > 1 else ""
    print(f"{plan.missing} of {plan.missing + plan.done} records to compute: {runs}, in {where.runs}", file=sys.stderr)


def _conclude(failures: Sequence[Failure], interrupted: bool, options: argparse.Namespace) -> None:
    if interrupted:
        raise KeyboardInterrupt
    if failures:
        if options.debug:
            print(failures[0].trace, file=sys.stderr)
        error = CheckFailed("; ".join(f"{failure.job.title}: {failure.message}" for failure in failures))
        error.exit_code = max(failure.exit_code for failure in failures)
        raise error


def confirm(plan: Plan, options: argparse.Namespace) -> None:
    """At more than an hour of estimated work say what it costs and ask; --yes answers."""
    if options.scale != "full":
        return
    from repro.launch.estimate import estimate

    cost = estimate(plan)
    print(cost.text, file=sys.stderr)
    if cost.gpu_hours <= ASK_ABOVE_HOURS or options.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this is more than an hour of work: repeat the command with --yes")
    if input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("not started")

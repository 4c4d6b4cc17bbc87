"""`repro plan`: what some tables need, what of it is done, and what the rest costs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from repro.cells import resolve
from repro.errors import UsageError
from repro.launch.cluster import Cluster, load_cluster
from repro.launch.display import clock
from repro.launch.plan import Folders, Job, Plan, make_plan, replicates
from repro.tables import Cell, load_table, table_names
from repro.verbs.computing import chosen_cells, folders
from repro.verbs.published import Given, published_for, weights_of
from repro.verbs.terminal import counted


def plan(options: argparse.Namespace) -> int:
    """Print the smallest set of trajectories and evaluations of some tables, and its cost for a cluster profile."""
    from repro.launch.estimate import ASSUMED

    cluster = load_cluster(options.cluster) if options.cluster else ASSUMED
    names = chosen_tables(options)
    chosen, left_out, given = computable_cells(names, options)
    where = folders(options, write=False)
    for cell in counted(chosen, len(chosen), "cells checked"):
        resolve(cell, options.scale, options.gin).check()  # costs seconds the first time, and nothing from then on
    made = make_plan(chosen, options.scale, options.gin, seeds(options), where.readable, given)
    for problem in made.problems:
        print(f"not used: {problem}", file=sys.stderr)
    facts = describe(names, made, where, cluster, chosen, given, options)
    facts["left_out"] = [cell.name for cell in left_out]
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    print(render(facts, options.cluster, cluster))
    return 0


def chosen_tables(options: argparse.Namespace) -> list[str]:
    """The tables of a command line, each once: those named, or all."""
    if bool(options.tables) == bool(options.all):
        other = {True: ", or --all and not both", False: ", or --all", None: ""}[options.all]
        raise UsageError(f"name tables, such as edm/table2{other}")
    names = list(dict.fromkeys(options.tables or table_names()))
    for name in names:
        load_table(name)
    return names


def seeds(options: argparse.Namespace) -> range:
    """The training seeds of --seeds and --first-seed."""
    return range(options.first_seed, options.first_seed + options.seeds)


def computable_cells(names: Sequence[str], options: argparse.Namespace) -> tuple[list[Cell], list[Cell], Given]:
    """(cells to compute, cells left out, imported weights that are evaluated) of some tables.

    Left out are those whose weights the paper's authors published, until they are imported or --train is given.

    --rows and --columns choose where one table is named.
    """
    if len(names) > 1 and (options.rows or options.columns):
        raise UsageError("--rows and --columns choose from one table")
    cells = [cell for name in names for cell in chosen_cells(options, name) if not cell.reference_only]
    given = published_for(cells, options, options.gin, say=True)
    if weights_of(options) == "published":
        return [cell for cell in cells if cell.name in given], [], given
    chosen: list[Cell] = []
    left_out: list[Cell] = []
    for cell in cells:
        needs_import = cell.starred and options.scale == "full" and not options.train and cell.name not in given
        (left_out if needs_import else chosen).append(cell)
    return chosen, left_out, given


def describe(
    names: Sequence[str],
    made: Plan,
    where: Folders,
    cluster: Cluster,
    cells: Sequence[Cell],
    given: Given,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All that `plan --json` prints. A trajectory that several tables need stands with the first of them."""
    from repro.launch.estimate import cost, work

    priced = [(job, work(job, where)) for job in counted(made.jobs, len(made.jobs), "networks counted")]
    missing = {task.evaluation_hash for job in made.jobs for task in job.tasks}
    tables = []
    for name in names:
        own = [(job, left) for job, left in priced if _table(job) == name]
        mine = [cell for cell in cells if cell.table == name]
        hashes = {
            replicate.evaluation_hash
            for cell in mine
            for replicate in replicates(cell, options.scale, options.gin, seeds(options), given.get(cell.name, ()))
        }
        shared = sum(
            any(request.cell.startswith(f"{name}/") for request in job.wanted)
            for job, _ in priced
            if _table(job) != name
        )
        line = {"table": name, "cells": len(mine), "complete": len(hashes - missing), "experiments": len(hashes)}
        tables.append({**line, "shared_runs": shared, **dataclasses.asdict(cost(own, cluster))})
    total = dataclasses.asdict(cost(priced, cluster))
    return {
        "scale": options.scale,
        "cluster": dataclasses.asdict(cluster),
        "tables": tables,
        "total": {**total, "records_done": made.done, "records_missing": made.missing},
        "trajectories": [
            {
                "trajectory_hash": job.trajectory_hash,
                "cells": sorted({request.cell for request in job.wanted}),
                "seed": job.wanted[0].seed,
                "evaluations": len(job.tasks),
                "train_gpu_hours": left.train_flops / cluster.flops / 3600,
                "evaluation_gpu_hours": left.evaluation_flops / cluster.flops / 3600,
                "disk_gb": left.disk_bytes / 1e9,
            }
            for job, left in priced
        ],
    }


def _table(job: Job) -> str:
    return job.wanted[0].cell.rsplit("/", 2)[0]


def render(facts: dict[str, Any], name: str | None, cluster: Cluster) -> str:
    """The plan as a table for people."""
    from tabulate import tabulate

    priced = cluster.price > 0
    header = ["table", "cells", "complete", "runs", "shared", "evaluations", "GPU-hours", "wall time", "disk GB"]
    header += [cluster.currency] if priced else []

    def row(first: list[Any], line: dict[str, Any]) -> list[Any]:
        numbers = [line["runs"], line.get("shared_runs", ""), line["evaluations"], f"{line['gpu_hours']:,.1f}"]
        numbers += [clock(line["hours"] * 3600), f"{line['disk_gb']:,.1f}"]
        return [*first, *numbers, *([f"{line['money']:,.0f}"] if priced else [])]

    rows = [row([t["table"], t["cells"], f"{t['complete']}/{t['experiments']}"], t) for t in facts["tables"]]
    if len(rows) > 1:
        rows.append(row(["total", sum(t["cells"] for t in facts["tables"]), ""], facts["total"]))
    right = ("left", *["right"] * (len(header) - 1))
    lines = [tabulate(rows, header, tablefmt="simple", colalign=right, disable_numparse=True)]
    total = facts["total"]
    each = cluster.gpus(cluster.nodes)
    one, several = ("GPU", "GPUs") if cluster.gpus_per_node else ("process", "processes")
    unit = one if each == 1 else several
    jobs = f"{cluster.array_parallelism} jobs of {each} {unit} at a time in an array"
    where = f"on {name}: {jobs}" if name else "on one GPU"
    lines.append(
        f"at {facts['scale']}, {where}, {cluster.flops / 1e12:.4g} TFLOP/s sustained each; queueing not counted"
    )
    lines.append(f"{total['records_done']} of {total['records_done'] + total['records_missing']} records are there")
    if facts["left_out"]:
        count = len(facts["left_out"])
        lines.append(
            f"left out: {count} cells of published weights: import them (`repro list --published`), or --train"
        )
    return "\n".join(lines)

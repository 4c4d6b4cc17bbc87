"""`repro collect` and `repro check`: what the records say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from repro import cache
from repro.cells import Resolved, resolve
from repro.files import make_folder, write_atomic
from repro.launch.plan import Folders
from repro.results.collect import Collection, collect
from repro.results.render import as_json, ours, render


def collect_table(options: argparse.Namespace) -> int:
    """Assemble a table from records; computes nothing."""
    from repro.tables import load_table
    from repro.verbs.computing import chosen_cells, folders
    from repro.verbs.published import weights_of

    where, cells = folders(options, write=False), chosen_cells(options)
    collection = collect(
        load_table(options.table), options.scale, where.readable, cells, options.gin, weights_of(options)
    )
    content = text(collection, options, where)
    print(content)
    if options.out:
        write(options.out, content)
    return 0


def text(collection: Collection, options: argparse.Namespace, where: Folders) -> str:
    """The rendered table with its caption."""
    return render(collection, options.format, caption(collection, where, options.gin))


def write(path: Path, content: str) -> None:
    """Write a rendered table and say where."""
    make_folder(path.parent)
    write_atomic(path, (content + "\n").encode())
    print(f"written to {path}", file=sys.stderr)


def caption(collection: Collection, where: Folders, bindings: list[str]) -> list[str]:
    """Title, metric, number of images, NFE used and, for the digits, the floor of the metric."""
    lines = [f"{collection.table.title}, at scale {collection.scale}."]
    computed = [result for result in collection.cells if not result.cell.reference_only]
    if not computed:
        return lines
    resolved = resolve(computed[0].cell, collection.scale, bindings)
    count = resolved.evaluation.args["num_samples"]
    lines.append(f"{computed[0].metric} of {count} generated images{_nfe(collection)}.")
    if floor := _floor(collection, resolved, where):
        lines.append(floor)
    return lines


def _nfe(collection: Collection) -> str:
    """The NFE that we and the paper used, where the table does not print them cell by cell."""
    found = {replicate.nfe for result in collection.cells for replicate in result.replicates}
    if "NFE" in collection.table.shown or not found:
        return ""
    paper = sorted({result.cell.reference["NFE"] for result in collection.cells if "NFE" in result.cell.reference})
    beside = f" (the paper's: {', '.join(f'{n:g}' for n in paper)})" if paper else ""
    return f"; NFE {', '.join(f'{n:g}' for n in sorted(found))}{beside}"


def _floor(collection: Collection, resolved: Resolved, where: Folders) -> str:
    """The distance that a perfect generator would score, for the protocol that can say it cheaply."""
    manifests = {replicate.manifest for result in collection.cells for replicate in result.replicates}
    if resolved.evaluation.args["protocol"].name != "DigitsProtocol" or len(manifests) != 1:
        return ""
    count = resolved.evaluation.args["num_samples"]
    key = f"{manifests.pop()} {count}"
    value = cache.remember("floor", key, lambda: _measured_floor(resolved, where, count))
    if value is None:
        return ""
    return f"Floor of the metric (a class-balanced resample of {count} real images): {value:.2f}."


def _measured_floor(resolved: Resolved, where: Folders, count: int) -> float | None:
    """None where the data are not prepared: nothing is, and no torch is imported, for the sake of a caption."""
    from repro.data.sources import folder_name

    data = resolved.trajectory.args["data"].args
    if not (where.data / folder_name("digits", data["resolution"], data["channels"])).is_dir():
        return None
    from repro.metrics.protocols import floor

    stream = resolved.dataset().open(where.data, 0)
    return floor(stream.all_images(), stream.all_labels(), count, 0)


def print_cells(collection: Collection, as_text: bool) -> None:
    """One line a cell, or JSON."""
    if as_text:
        print(json.dumps(as_json(collection, []), indent=1))
        return
    for result in collection.cells:
        paper = result.cell.reference.get(collection.table.metric)
        beside = "" if paper is None else f" (the paper's {collection.table.metric}: {paper:g})"
        why = f"  {'; '.join(result.notes)}" if result.notes else ""
        print(f"{result.cell.name}  {result.metric} {ours(result)}{beside}{why}")


def check(options: argparse.Namespace) -> int:
    """Fingerprints, or statistics against references; prints the verdicts and writes JUnit XML if asked."""
    from repro.results.check import Report, check_fingerprints, check_statistics, junit
    from repro.tables import load_table
    from repro.verbs.computing import chosen_cells, folders
    from repro.verbs.terminal import counted

    table = load_table(options.table)
    where = folders(options, write=False)
    report: Report
    if options.fingerprint:
        cells = [cell for cell in table.select(options.rows, options.columns) if not cell.reference_only]
        report = check_fingerprints(table, counted(cells, len(cells), "fingerprints"), where.data)
    else:
        collection = collect(table, options.scale, where.readable, chosen_cells(options), options.gin)
        report = check_statistics(collection, options.allow_stale)
    if options.junit:
        write_atomic(options.junit, junit([report]).encode())
    if options.json:
        lines = [{"cell": line.cell, "verdict": line.verdict, "text": line.text} for line in report.lines]
        content = {"title": report.title, "rule": report.rule, "exit_code": report.exit_code, "cells": lines}
        print(json.dumps(content, indent=1))
        return report.exit_code
    print(f"{report.title} ({report.rule})")
    for line in report.lines:
        print(f"  {line.verdict:8} {line.cell}  {line.text}")
    outside = sum(line.verdict == "outside" for line in report.lines)
    mild = f" ({outside} cell outside its own band, which the table's rule allows)" if outside else ""
    words = {0: f"holds{mild}", 1: "OUTSIDE", 3: "nothing comparable"}
    print(words[report.exit_code])
    return report.exit_code

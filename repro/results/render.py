"""A collection as a table to read: markdown, LaTeX, HTML, CSV, JSON or a picture, all from one model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from repro.results.collect import CellResult, Collection, row_of
from repro.results.picture import svg

FORMATS = ("md", "latex", "html", "csv", "json", "svg")
DAGGER = "†"
STAR = "*"


def render(collection: Collection, form: str, caption: list[str]) -> str:
    """The table in one of `FORMATS`.

    Args:
        caption: lines about metric, NFE and floor; the notes follow them. CSV has no caption.
    """
    lines = [*caption, *notes(collection)]
    writers: dict[str, Callable[[], str]] = {
        "md": lambda: f"{grid(collection, 'github')}\n\n" + "\n".join(f"- {line}" for line in lines),
        "latex": lambda: _latex(collection, lines),
        "html": lambda: _html(collection, lines),
        "csv": lambda: collection.frame().to_csv(index=False).rstrip("\n"),
        "svg": lambda: svg(collection.table.name, *cells_of(collection), lines),
        "json": lambda: json.dumps(as_json(collection, lines), indent=1, sort_keys=True),
    }
    return writers[form]()


def grid(collection: Collection, form: str) -> str:
    """Rows x columns: ours beside the paper's value in every column, in one of tabulate's forms."""
    headers, body = cells_of(collection)
    return tabulate(body, headers=headers, tablefmt=form, disable_numparse=True)


def cells_of(collection: Collection) -> tuple[list[str], list[list[str]]]:
    """(headers, body) of the table as text."""
    found = {(result.cell.row, result.cell.column): result for result in collection.cells}
    columns = [name for name in collection.table.columns if any(key[1] == name for key in found)]
    metric = collection.cells[0].metric if collection.cells else ""
    headers = [""]
    for name in columns:
        label = collection.table.columns[name]
        headers += [f"{label}: {metric}", f"paper's {collection.table.metric}"]
    body = []
    for row, label in collection.table.rows.items():
        results = [found.get((row, name)) for name in columns]
        if any(results):
            body.append([label, *(text for result in results for text in pair(collection, result))])
    return headers, body


def pair(collection: Collection, result: CellResult | None) -> tuple[str, str]:
    """(ours, the paper's) of one cell as text."""
    if result is None:
        return "", ""
    value = result.cell.reference.get(collection.table.metric)
    paper = "none" if value is None else f"{value:.2f}" + (STAR if result.cell.starred else "")
    return ours(result), paper


def ours(result: CellResult) -> str:
    """`1.23 ± 0.04 (3)`: mean, sd and n of the replicates, a dagger for an inferred setting, `stale`, the verdict."""
    if not result.replicates:
        return "missing"
    n = len(result.values)
    spread = "" if math.isnan(result.sd) else f" ± {result.sd:.2f} ({n})"
    mark = DAGGER if result.cell.inferred else ""
    stale = " stale" if result.stale else ""
    verdict = f" {result.verdict}" if result.verdict else ""
    return f"{result.mean:.2f}{mark}{spread}{stale}{verdict}"


def notes(collection: Collection) -> list[str]:
    """What a reader must know: how values were chosen, marks, missing cells, unused files; equal reasons together."""
    table = collection.table
    lines = [f"The paper's value: {table.chosen}."]
    inferred: dict[str, list[str]] = {}
    for result in collection.cells:
        if result.cell.inferred:
            inferred.setdefault(result.cell.inferred, []).append(result.cell.row)
    for reason, rows in inferred.items():
        names = ", ".join(sorted({row.upper() for row in rows}))
        lines.append(f"{DAGGER} {names}: inferred setting, no verdict against the paper: {reason}.")
    if any(result.cell.starred for result in collection.cells):
        lines.append(f"{STAR} {table.starred}")
    rules = sorted({result.rule for result in collection.cells if result.rule})
    lines += [f"Verdict against {rule}." for rule in rules]
    reasons: dict[str, list[str]] = {}
    for result in collection.cells:
        for note in result.notes:
            if note != "no verdict: an inferred setting":
                reasons.setdefault(note, []).append(f"{result.cell.row}/{result.cell.column}")
    lines += [f"{note}: {', '.join(cells)}." for note, cells in reasons.items()]
    return lines + [f"Not used: {line}." for line in collection.notes]


def as_json(collection: Collection, lines: list[str]) -> dict[str, Any]:
    """Everything, cell by cell, with every replicate and the candidate that was chosen. NaN becomes null."""
    cells: list[dict[str, Any]] = []
    for result in collection.cells:
        row = row_of(result)
        row["inferred"] = result.cell.inferred or None
        row["starred"] = result.cell.starred
        row["stale"] = result.stale
        row["replicates"] = [
            {
                "seed": r.seed,
                "value": r.value,
                "milestone_nimg": r.milestone_nimg,
                "range": r.range,
                "candidates": r.candidates,
                "NFE": r.nfe,
                "stale": r.stale,
                "metrics": r.metrics,
            }
            for r in result.replicates
        ]
        cells.append(row)
    content = {"table": collection.table.name, "scale": collection.scale, "cells": cells, "notes": lines}
    return _plain({**content, "not_used": collection.notes})


def _plain(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _latex(collection: Collection, lines: list[str]) -> str:
    # tabulate escapes the cells' own special characters, and leaves these two.
    body = grid(collection, "latex_booktabs").replace("±", _TEX["±"]).replace(DAGGER, _TEX[DAGGER])
    caption = "".join(_TEX.get(character, character) for character in " ".join(lines))
    return f"\\begin{{table}}\n{body}\n\\caption{{{caption}}}\n\\end{{table}}"


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    DAGGER: r"$^\dagger$",
}


def _html(collection: Collection, lines: list[str]) -> str:
    from html import escape

    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h1>{escape(collection.table.title)}</h1>\n{grid(collection, 'html')}\n<ul>\n{items}\n</ul>"

"""A collection as a table to read: markdown, LaTeX, HTML, CSV, JSON or a picture, all from one model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from repro.results.collect import REFERENCE_ONLY, CellResult, Collection, mean_and_sd, row_of
from repro.results.picture import svg
from repro.results.sizes import SIZES
from repro.tables import Cell, Table

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
    """(headers, body) of the table as text: in every column ours and the paper's value of each metric shown, but for
    metrics that only the paper has.
    """
    table = collection.table
    found = {(result.cell.row, result.cell.column): result for result in collection.cells}
    across, down = table.columns, table.rows
    if table.transposed:
        across, down = down, across
        found = {(column, row): result for (row, column), result in found.items()}
    columns = [name for name in across if any(key[1] == name for key in found)]
    headers = [""]
    for name in columns:
        for index, metric in enumerate(table.shown):
            own = collection.own_name(metric)
            both = (f"{across[name]}: {own}" if index == 0 else own, f"paper's {metric}")
            headers += _kept(table, metric, both)
    body = []
    for row, label in down.items():
        results = [found.get((row, name)) for name in columns]
        if any(results):
            texts = (_kept(table, m, pair(collection, result, m)) for result in results for m in table.shown)
            body.append([label, *(text for found in texts for text in found)])
    return headers, body


def _kept(table: Table, metric: str, both: tuple[str, str]) -> tuple[str, ...]:
    """(ours, the paper's) of a metric, without ours where there is none."""
    return both[1:] if metric in table.paper_only else both


def pair(collection: Collection, result: CellResult | None, metric: str) -> tuple[str, str]:
    """(ours, the paper's) of one of the paper's metrics in a cell, as text."""
    if result is None:
        return "", ""
    value = result.cell.reference.get(metric)
    if metric in SIZES:
        return number(result.sizes.get(metric, math.nan)), "" if value is None else number(value)
    if metric != collection.table.metric:
        own = [replicate.value_of(collection.own_name(metric)) for replicate in result.replicates]
        missing = not (own or result.cell.reference_only)
        return ours(result) if missing else number(mean_and_sd(own)[0]), "none" if value is None else number(value)
    paper = "none" if value is None else f"{value:.2f}" + (STAR if result.cell.starred else "")
    return ours(result), paper


def number(value: float) -> str:
    """A count as it is, a share with three digits, anything else with two; '' for nan."""
    if math.isnan(value):
        return ""
    digits = 0 if value == round(value) else 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f}"


def ours(result: CellResult) -> str:
    """`1.23 ± 0.04 (3)`: mean, sd and n of the replicates; `[1.25 ± 0.02]` over ranges; marks and the verdict."""
    if result.cell.reference_only:
        return REFERENCE_ONLY
    if not result.replicates:
        return "missing"
    n = len(result.values)
    spread = "" if math.isnan(result.sd) else f" ± {result.sd:.2f} ({n})"
    range_mean, range_sd, ranges = result.over_ranges
    over_ranges = f" [{range_mean:.2f} ± {range_sd:.2f}]" if ranges > 1 else ""
    mark = DAGGER if result.cell.inferred else ""
    stale = (" imported" if result.imported else "") + (" stale" if result.stale else "")
    verdict = f" {result.verdict}" if result.verdict else ""
    return f"{result.mean:.2f}{mark}{spread}{over_ranges}{stale}{verdict}"


def notes(collection: Collection) -> list[str]:
    """What a reader must know: how values were chosen, marks, missing cells, unused files; equal reasons together."""
    table = collection.table
    lines = [f"The paper's value: {table.chosen}."]
    if table.reference_file:
        known = sum(table.metric in cell.reference for cell in table.cells)
        lines.append(
            f"{known} of the table's {len(table.cells)} cells have a reference; whoever has the paper fills in the "
            f"others in tables/{table.reference_file}."
        )
    ranges = sorted({result.over_ranges[2] for result in collection.cells if result.over_ranges[2] > 1})
    if ranges:
        each = " or ".join(map(str, ranges))
        lines.append(f"In brackets: mean and sd over the {each} ranges of which our value is the minimum.")
    if shown := [name for name in SIZES if name in table.shown]:
        lines.append(
            f"{' and '.join(shown)}: of the network at full scale in the form that is sampled from, counted "
            "(multiply-accumulates of an image, as the paper counts them); a guide is not."
        )
    lines += [f"{metric}: {why}." for metric, why in table.paper_only.items()]
    inferred: dict[str, list[Cell]] = {}
    for result in collection.cells:
        for reason in result.cell.inferred_parts:
            inferred.setdefault(reason, []).append(result.cell)
    for reason, cells in inferred.items():
        lines.append(f"{DAGGER} {_named(collection, cells)}: inferred setting, no verdict against the paper: {reason}.")
    if any(result.cell.starred for result in collection.cells):
        lines.append(f"{STAR} {table.starred}")
    if any(result.imported for result in collection.cells):
        lines.append(_trained(collection))
    rules = sorted({result.rule for result in collection.cells if result.rule})
    lines += [f"Verdict against {rule}." for rule in rules]
    reasons: dict[str, list[str]] = {}
    for result in collection.cells:
        for note in result.notes:
            if note != "no verdict: an inferred setting":
                reasons.setdefault(note, []).append(f"{result.cell.row}/{result.cell.column}")
    lines += [f"{note}: {', '.join(cells)}." for note, cells in reasons.items()]
    return lines + [f"Not used: {line}." for line in collection.notes]


def _trained(collection: Collection) -> str:
    """Which values are of weights that were trained here, in a table where some are not."""
    trained = [f"{r.cell.row}/{r.cell.column}" for r in collection.cells if r.replicates and not r.imported]
    return f"Trained here: {', '.join(trained) or 'no cell; values marked imported are of published weights'}."


def _named(collection: Collection, cells: list[Cell]) -> str:
    """Names of some cells: their rows, where they are all that is shown of these, else their columns or their own."""
    shown = [result.cell for result in collection.cells]
    for part in ("row", "column"):
        names = {getattr(cell, part) for cell in cells}
        if len(cells) == sum(getattr(cell, part) in names for cell in shown):
            return ", ".join(sorted(name.upper() if len(name) == 1 else name for name in names))
    return ", ".join(f"{cell.row}/{cell.column}" for cell in cells)


def as_json(collection: Collection, lines: list[str]) -> dict[str, Any]:
    """Everything, cell by cell, with every replicate and the candidate that was chosen. NaN becomes null."""
    cells: list[dict[str, Any]] = []
    for result in collection.cells:
        row = row_of(result)
        row["inferred"] = result.cell.inferred or None
        row["starred"] = result.cell.starred
        row["reference_only"] = result.cell.reference_only or None
        row["stale"] = result.stale
        row["imported"] = result.imported or None
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
                "over_ranges": list(r.over_ranges),
            }
            for r in result.replicates
        ]
        cells.append(row)
    content = {"table": collection.table.name, "scale": collection.scale, "cells": cells, "notes": lines}
    return without_nan({**content, "not_used": collection.notes})


def without_nan(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
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

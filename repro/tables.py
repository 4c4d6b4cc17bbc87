"""The papers' tables: rows, columns and cells, and the values to compare with. Reads TOML, imports no torch."""

from __future__ import annotations

import csv
import dataclasses
import tomllib
from collections.abc import Sequence
from functools import cache
from typing import Any

from repro import assets
from repro.errors import UsageError
from repro.suggest import suggest


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment of a table: row x column.

    reference: metric -> the paper's value; starred: the paper evaluated published weights and did not train;
    inferred: the setting that the paper does not state ('' if none): a dagger, and no verdict against the paper;
    reference_only: why this project cannot compute the cell ('' if it can): a row of such cells has no Gin file;
    inferred_parts: what the row leaves open, and what the column does.
    """

    table: str
    row: str
    column: str
    reference: dict[str, float]
    starred: bool
    inferred: str
    reference_only: str = ""
    inferred_parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def row_file(self) -> str:
        return f"{self.table}/{self.row}.gin"

    @property
    def gin(self) -> list[str]:
        """Gin files in the order of composition, relative to the Gin root: column, then row. The scale's follows.

        None for a reference-only cell.
        """
        if self.reference_only:
            return []
        paper = self.table.split("/")[0]
        return [f"{paper}/columns/{self.column}.gin", self.row_file]


@dataclasses.dataclass(frozen=True)
class Plot:
    """How a figure is drawn: metric over x (a metric too, such as NFE), a curve for each value of a row's `curve`.

    labels: curve -> its label in the legend; curves: row -> its curve; also: a table whose rows of the curves' names
    are points of them too, or ''.
    """

    x: str
    also: str
    labels: dict[str, str]
    curves: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table (or numeric figure) of a paper as `tables/<paper>_<table>.toml` has it.

    metric: the paper's name of the metric that decides; shown: all that are printed, in order; mini_columns: the
    columns that scales below full take by default; plot: how to draw it where it is a figure, else None; transposed:
    whether the paper prints our columns as its rows; reference_file: the CSV that holds the paper's values, or '';
    paper_only: metrics shown of which there is no value of ours, and why.
    """

    name: str
    title: str
    paper: str
    source: str
    chosen: str
    metric: str
    shown: tuple[str, ...]
    mini_columns: tuple[str, ...]
    starred: str
    rows: dict[str, str]
    columns: dict[str, str]
    cells: tuple[Cell, ...]
    plot: Plot | None
    transposed: bool = False
    reference_file: str = ""
    paper_only: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def computable(self) -> list[Cell]:
        """All cells but the reference-only ones."""
        return [cell for cell in self.cells if not cell.reference_only]

    def cell(self, row: str, column: str) -> Cell | None:
        """The cell, or None where the table has none."""
        return next((c for c in self.cells if c.row == row and c.column == column), None)

    def select(self, rows: list[str] | None, columns: list[str] | None) -> list[Cell]:
        """The cells of the given rows and columns (None: all), in the table's order. Unknown names raise UsageError."""
        for kind, asked, known in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in asked or ():
                if name not in known:
                    file = f"{self.name}/{name}.gin"
                    if kind == "row" and (assets.gin_dir() / file).is_file():
                        raise UsageError(
                            f"gin/{file} is there, but [rows.{name}] is not in tables/{_file_name(self.name)}: a row "
                            "needs both"
                        )
                    raise UsageError(f"table {self.name} has no {kind} {name!r}{suggest(name, known)}")
        return [c for c in self.cells if c.row in (rows or self.rows) and c.column in (columns or self.columns)]


@cache
def table_names() -> tuple[str, ...]:
    """Names such as 'edm/table2', sorted."""
    return tuple(sorted(p.stem.replace("_", "/", 1) for p in assets.tables_dir().glob("*.toml")))


@cache
def load_table(name: str) -> Table:
    """Read a table. Raises UsageError with the nearest name for an unknown one, or where its TOML is wrong."""
    if name not in table_names():
        table, rest = "/".join(name.split("/")[:2]), name.split("/")[2:]
        if table in table_names() and rest:
            options = " ".join(f"--{part} {one}" for part, one in zip(("rows", "columns"), rest, strict=False))
            raise UsageError(f"{name!r} is no table but a part of one: {table} {options}")
        raise UsageError(f"no table {name!r}{suggest(name, table_names())} (`repro list` shows all)")
    file = assets.tables_dir() / _file_name(name)
    try:
        return _table(name, tomllib.loads(file.read_text(encoding="utf-8")))
    except KeyError as error:
        raise UsageError(f"{file.name}: the key {error} is missing (docs/adding-a-paper.md has them all)") from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise UsageError(f"{file.name}: {error}") from None


def _table(name: str, data: dict[str, Any]) -> Table:
    rows: dict[str, Any] = data["rows"]
    values = _reference_csv(name, data["reference_file"], rows, data["columns"]) if "reference_file" in data else {}
    notes: dict[str, dict[str, str]] = data.get("column_notes", {})
    if unknown := sorted(set(notes) - set(data["columns"])):
        raise ValueError(f"[column_notes] has no column {unknown[0]!r}")
    paper_only: dict[str, str] = dict(data.get("paper_only", {}))
    if unknown := sorted(set(paper_only) - set(data.get("shown", []))):
        raise ValueError(f"[paper_only] has a metric {unknown[0]!r} that is not shown")
    metrics = [*dict.fromkeys([data["metric"], *data.get("shown", []), "NFE"])]
    return Table(
        name=name,
        title=data["title"],
        paper=data["paper"],
        source=data["source"],
        chosen=data["chosen"],
        metric=data["metric"],
        shown=tuple(data.get("shown", [data["metric"]])),
        mini_columns=tuple(data["mini_columns"]),
        starred=data.get("starred", ""),
        rows={row: _label(row, spec) for row, spec in rows.items()},
        columns=dict(data["columns"]),
        cells=tuple(
            _cell(name, row, spec, column, values.get((row, column), {}), notes.get(column, {}), metrics)
            for row, spec in rows.items()
            for column in _columns(row, spec, data["columns"])
        ),
        plot=_plot(data["plot"], rows) if "plot" in data else None,
        transposed=data.get("transposed", False),
        reference_file=data.get("reference_file", ""),
        paper_only=paper_only,
    )


def _file_name(table: str) -> str:
    return f"{table.replace('/', '_', 1)}.toml"


def _label(row: str, spec: dict[str, Any]) -> str:
    if "label" not in spec:
        raise ValueError(f"[rows.{row}] has no label{suggest('label', spec)}")
    return str(spec["label"])


def _columns(row: str, spec: dict[str, Any], columns: dict[str, str]) -> list[str]:
    """The columns of a row, in the table's order: those that it names under `cells`, all where it names none."""
    cells = spec.get("cells", columns)
    for name in cells:
        if name not in columns:
            raise ValueError(
                f"[rows.{row}] has a cell in a column {name!r} that the table has not{suggest(name, columns)}"
            )
    return [name for name in columns if name in cells]


def _reference_csv(
    table: str, name: str, rows: dict[str, Any], columns: dict[str, str]
) -> dict[tuple[str, str], dict[str, float]]:
    """(row, column) -> metric -> value, from the lines of a CSV beside the tables that are of this table.

    Its lines have table, row, column, metric, value and source; an empty value is not known; # begins a comment.
    """
    text = (assets.tables_dir() / name).read_text(encoding="utf-8")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line in csv.DictReader(line for line in text.splitlines() if line and not line.startswith("#")):
        if line["table"] != table:
            continue
        for kind, known in (("row", rows), ("column", columns)):
            if line[kind] not in known:
                raise ValueError(f"{name} has a {kind} {line[kind]!r} that {table} has not{suggest(line[kind], known)}")
        if line["value"].strip():
            found.setdefault((line["row"], line["column"]), {})[line["metric"]] = float(line["value"])
    return found


def _cell(
    table: str,
    row: str,
    spec: dict[str, Any],
    column: str,
    values: dict[str, float],
    notes: dict[str, str],
    metrics: Sequence[str],
) -> Cell:
    """metrics: those that the paper may have values of."""
    for name in spec.get("cells", {}).get(column, {}):
        if name not in metrics:
            raise ValueError(f"[rows.{row}] has a value of {name!r} in {column}{suggest(name, metrics)}")
    inferred = tuple(part["inferred"] for part in (spec, notes) if "inferred" in part)
    return Cell(
        table=table,
        row=row,
        column=column,
        reference={key: float(value) for key, value in spec.get("cells", {}).get(column, {}).items()} | values,
        starred=column in spec.get("starred", []),
        inferred="; ".join(inferred),
        inferred_parts=inferred,
        reference_only=spec.get("reference_only", "") or notes.get("reference_only", ""),
    )


def _plot(spec: dict[str, Any], rows: dict[str, Any]) -> Plot:
    curves = {row: row_spec["curve"] for row, row_spec in rows.items() if "curve" in row_spec}
    unknown = sorted(set(curves.values()) - set(spec["curves"]))
    if unknown:
        raise ValueError(f"[plot] has no curve {unknown[0]!r}")
    return Plot(spec["x"], spec.get("also", ""), dict(spec["curves"]), curves)


def find_cell(name: str) -> Cell:
    """The cell of a name such as 'edm/table2/f/cifar10-cond-vp'. UsageError names the part that is wrong."""
    parts = name.strip("/").split("/")
    if len(parts) != 4:
        raise UsageError(f"{name!r} is no cell; a cell is PAPER/TABLE/ROW/COLUMN, such as edm/table2/f/cifar10-cond-vp")
    table = load_table("/".join(parts[:2]))
    table.select([parts[2]], [parts[3]])
    cell = table.cell(parts[2], parts[3])
    if cell is None:
        raise UsageError(f"table {table.name} has no value for row {parts[2]} in column {parts[3]}")
    return cell

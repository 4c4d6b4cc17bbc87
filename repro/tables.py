"""The papers' tables: rows, columns and cells, and the values to compare with. Reads TOML, imports no torch."""

from __future__ import annotations

import dataclasses
import tomllib
from functools import cache

from repro import assets
from repro.errors import UsageError
from repro.suggest import suggest


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment of a table: row x column.

    reference: metric -> the paper's value; starred: the paper evaluated published weights and did not train;
    inferred: the setting that the paper does not state ('' if none): a dagger, and no verdict against the paper.
    """

    table: str
    row: str
    column: str
    reference: dict[str, float]
    starred: bool
    inferred: str

    @property
    def name(self) -> str:
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def row_file(self) -> str:
        return f"{self.table}/{self.row}.gin"

    @property
    def gin(self) -> list[str]:
        """Gin files in the order of composition, relative to the Gin root: column, then row. The scale's follows."""
        paper = self.table.split("/")[0]
        return [f"{paper}/columns/{self.column}.gin", self.row_file]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper as `tables/<paper>_<table>.toml` has it."""

    name: str
    title: str
    paper: str
    source: str
    chosen: str
    metric: str
    mini_columns: tuple[str, ...]
    starred: str
    rows: dict[str, str]
    columns: dict[str, str]
    cells: tuple[Cell, ...]

    def cell(self, row: str, column: str) -> Cell | None:
        """The cell, or None where the table has none."""
        return next((c for c in self.cells if c.row == row and c.column == column), None)

    def select(self, rows: list[str] | None, columns: list[str] | None) -> list[Cell]:
        """The cells of the given rows and columns (None: all), in the table's order. Unknown names raise UsageError."""
        for kind, asked, known in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in asked or ():
                if name not in known:
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
        raise UsageError(f"no table {name!r}{suggest(name, table_names())} (`repro list` shows all)")
    file = assets.tables_dir() / f"{name.replace('/', '_', 1)}.toml"
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        rows = data["rows"]
        cells = [
            Cell(
                table=name,
                row=row,
                column=column,
                reference={key: float(value) for key, value in spec["cells"][column].items()},
                starred=column in spec.get("starred", []),
                inferred=spec.get("inferred", ""),
            )
            for row, spec in rows.items()
            for column in data["columns"]
            if column in spec["cells"]
        ]
        return Table(
            name=name,
            title=data["title"],
            paper=data["paper"],
            source=data["source"],
            chosen=data["chosen"],
            metric=data["metric"],
            mini_columns=tuple(data["mini_columns"]),
            starred=data.get("starred", ""),
            rows={row: spec["label"] for row, spec in rows.items()},
            columns=dict(data["columns"]),
            cells=tuple(cells),
        )
    except (tomllib.TOMLDecodeError, KeyError, ValueError) as error:
        raise UsageError(f"{file.name}: {type(error).__name__}: {error}") from None


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

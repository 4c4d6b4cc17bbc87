"""`repro list`: no torch, no Gin, instant."""

from __future__ import annotations

import argparse
import json
from typing import Any

from repro.tables import Cell, load_table, table_names


def run(options: argparse.Namespace) -> int:
    """Print the tables, or one table's rows, columns and cells."""
    if options.published:
        from repro.verbs.importing import list_published

        return list_published(options)
    names = [options.table] if options.table else list(table_names())
    tables = [load_table(name) for name in names]
    if options.json:
        print(json.dumps([describe(cell) for table in tables for cell in table.cells], indent=1))
        return 0
    for table in tables:
        print(f"{table.name}  {table.title}")
        print(f"  {len(table.cells)} cells; mini columns: {', '.join(table.mini_columns)}")
        print("  rows")
        width = max(map(len, table.rows))
        for row, label in table.rows.items():
            print(f"    {row:{width}} {label}")
        print("  columns")
        for column, label in table.columns.items():
            print(f"    {column:18} {label}")
        if options.table:
            print("  cells")
            for cell in table.cells:
                values = ", ".join(f"{metric} {value:g}" for metric, value in cell.reference.items())
                mark = " (reference only)" if cell.reference_only else " (starred)" if cell.starred else ""
                print(f"    {cell.name:40} {values}{mark}".rstrip())
    if not options.table:
        print("`repro list TABLE` shows a table's cells, `repro show CELL` what a cell is made of")
    return 0


def describe(cell: Cell) -> dict[str, Any]:
    """A cell as `--json` has it."""
    return {
        "cell": cell.name,
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "gin": cell.gin,
        "reference": cell.reference,
        "starred": cell.starred,
        "inferred": cell.inferred or None,
        "reference_only": cell.reference_only or None,
    }

"""A table as a picture: SVG, drawn by rich, with no font to fetch."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.terminal_theme import TerminalTheme

WIDTH = 124
"""Characters a line."""
_PAPER = TerminalTheme((255, 255, 255), (30, 30, 30), [(30, 30, 30)] * 8, [(90, 90, 90)] * 8)


def svg(title: str, headers: Sequence[str], body: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """The table and its caption as SVG text.

    Args:
        headers: one a column; body: rows of as many cells; lines: the caption.
    """
    table = Table(show_edge=False, show_lines=False, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right")
    for row in body:
        table.add_row(*row)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False, markup=False, color_system=None)
    console.print(table)
    console.print()
    for line in lines:
        console.print(line, style="bright_black")
    picture = console.export_svg(title=title, theme=_PAPER, unique_id="table")
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)

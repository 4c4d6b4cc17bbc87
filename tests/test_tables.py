"""Tables and Gin files, held against each other both ways."""

from __future__ import annotations

import pytest

from repro import assets
from repro.errors import UsageError
from repro.tables import find_cell, load_table, table_names


def test_every_row_and_column_has_a_file_and_every_file_a_row_or_column() -> None:
    rows, columns = set(), set()
    for name in table_names():
        table = load_table(name)
        paper = name.split("/")[0]
        rows |= {f"{name}/{row}.gin" for row in table.rows}
        columns |= {f"{paper}/columns/{column}.gin" for column in table.columns}
    root = assets.gin_dir()
    files = {p.relative_to(root).as_posix() for p in root.rglob("*.gin")}
    helpers = {f for f in files if f.startswith("scale/") or f.split("/")[1] == "parts"}
    assert files - helpers == rows | columns


def test_edm_table2_is_complete_and_as_printed() -> None:
    table = load_table("edm/table2")
    assert len(table.cells) == 48 and list(table.rows) == list("abcdef") and len(table.columns) == 8
    assert table.mini_columns == ("cifar10-cond-vp", "cifar10-cond-ve")
    for cell in table.cells:
        assert set(cell.reference) == {"FID", "NFE"}
        assert cell.reference["NFE"] == (35 if cell.column.startswith("cifar10") else 79)
    printed = {
        "a": [2.48, 3.11, 3.01, 3.77, 3.39, 25.95, 2.58, 18.52],
        "b": [2.18, 2.48, 2.51, 2.94, 3.13, 22.53, 2.43, 23.12],
        "c": [2.08, 2.52, 2.31, 2.83, 2.78, 41.62, 2.54, 15.04],
        "d": [2.09, 2.64, 2.29, 3.10, 2.94, 3.39, 2.79, 3.81],
        "e": [1.88, 1.86, 2.05, 1.99, 2.60, 2.81, 2.29, 2.28],
        "f": [1.79, 1.79, 1.97, 1.98, 2.39, 2.53, 1.96, 2.16],
    }
    for row, values in printed.items():
        cells = [table.cell(row, column) for column in table.columns]
        assert [cell.reference["FID"] for cell in cells if cell] == values
    starred = {cell.name for cell in table.cells if cell.starred}
    assert starred == {f"edm/table2/a/cifar10-uncond-{v}" for v in ("vp", "ve")}
    assert all(bool(cell.inferred) == (cell.row != "f") for cell in table.cells)


def test_row_files_open_with_a_lab_card_and_include_the_row_before() -> None:
    for before, row in zip("abcdef", "bcdef", strict=False):
        text = (assets.gin_dir() / f"edm/table2/{row}.gin").read_text()
        assert f"include 'edm/table2/{before}.gin'" in text
    for cell in load_table("edm/table2").cells:
        text = (assets.gin_dir() / cell.row_file).read_text()
        for word in ("# paper", "# table", "# printed", "# chosen", "# hardware", "# command"):
            assert word in text
        assert f"{cell.reference['FID']:.2f}" in text.split("# chosen")[0], cell.name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edm/table2/f", "is no cell"),
        ("edm/tabel2/f/ffhq-vp", "did you mean 'edm/table2'"),
        ("edm/table2/g/ffhq-vp", "no row 'g'"),
        ("edm/table2/f/ffhq-pv", "did you mean 'ffhq-vp'"),
    ],
)
def test_wrong_names_say_which_part_and_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_cell(name)

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
        rows |= {f"{name}/{cell.row}.gin" for cell in table.computable}
        columns |= {f"{paper}/columns/{cell.column}.gin" for cell in table.computable}
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


def printed(name: str) -> dict[str, list[tuple[float, float | None]]]:
    table = load_table(name)
    return {
        row: [(c.reference["FID"], c.reference.get("NFE")) for c in table.cells if c.row == row] for row in table.rows
    }


def test_edm_table3_and_table4_are_as_printed() -> None:
    assert printed("edm/table3") == {
        "original": [(2.85, 256), (5.45, 8192), (2.85, 250)],
        "algorithm1": [(2.79, 512), (4.78, 8192), (2.73, 384)],
        "heun": [(2.88, 255), (4.23, 191), (2.64, 79)],
        "ours": [(2.93, 35), (3.73, 27), (2.64, 79)],
        "rk45": [(2.94, 115), (3.69, 93), (2.66, 131)],
    }
    assert printed("edm/table4") == {
        "deterministic": [(2.93, 35), (3.73, 27), (2.64, 79)],
        "full-range-no-noise": [(2.69, 95), (2.97, 383), (1.86, 383)],
        "full-range": [(2.54, 127), (2.51, 511), (1.63, 767)],
        "no-noise": [(2.52, 95), (2.84, 191), (1.84, 255)],
        "optimal": [(2.27, 383), (2.23, 767), (1.55, 511)],
        "previous": [(2.55, 768), (2.46, 1024), (2.01, 384)],
    }
    assert [v[0] for v in printed("edm/imagenet64").values()] == [(2.07, None), (1.55, 511), (2.22, 79), (1.36, 511)]


def test_reference_only_rows_have_no_file_and_are_not_computed() -> None:
    for name, rows in (
        ("edm/table3", ["original"]),
        ("edm/table4", ["previous"]),
        ("edm/imagenet64", ["adm-original"]),
    ):
        table = load_table(name)
        quoted = [cell for cell in table.cells if cell.reference_only]
        assert sorted({cell.row for cell in quoted}) == rows
        assert all(cell.gin == [] for cell in quoted)
        assert table.computable == [cell for cell in table.cells if cell not in quoted]


@pytest.mark.parametrize("name", [name for name in table_names() if load_table(name).metric == "FID"])
def test_the_sampler_takes_the_printed_nfe(name: str) -> None:
    """At full scale; an adaptive sampler's is measured."""
    from repro.cells import resolve
    from repro.config import build
    from repro.diffusion.samplers import count_nfe, is_adaptive

    for cell in load_table(name).computable:
        node = resolve(cell).evaluation.args["sampler"]
        sampler = build(node)
        if is_adaptive(sampler):
            continue
        if node.args.get("num_steps", 0) > 600 and "solver" in node.args:  # 8,192 steps take a while, and say no more
            euler = node.args["solver"] == "euler"
            assert cell.reference["NFE"] == node.args["num_steps"] * (1 if euler else 2) - (0 if euler else 1), (
                cell.name
            )
        elif "NFE" in cell.reference:
            assert count_nfe(sampler) == cell.reference["NFE"], cell.name


def test_table5_is_what_the_optimal_rows_bind() -> None:
    from repro.cells import resolve

    table5 = {
        "edm/table4/optimal/cifar10-uncond-vp": (30, 0.01, 1, 1.007),
        "edm/table4/optimal/cifar10-uncond-ve": (80, 0.05, 1, 1.007),
        "edm/table4/optimal/imagenet64-adm": (80, 0.05, 50, 1.003),
        "edm/imagenet64/adm-stochastic/imagenet64-adm": (80, 0.05, 50, 1.003),
        "edm/imagenet64/e-stochastic/imagenet64-adm": (40, 0.05, 50, 1.003),
    }
    for name, values in table5.items():
        sampler = resolve(find_cell(name)).evaluation.args["sampler"]
        assert tuple(sampler.args[key] for key in ("S_churn", "S_min", "S_max", "S_noise")) == values


def test_one_training_run_serves_tables_2_to_4_and_figure_2() -> None:
    from repro.cells import resolve

    for column in ("cifar10-uncond-vp", "cifar10-uncond-ve"):
        for scale in ("full", "mini"):
            cells = [c for t in ("edm/table3", "edm/table4", "edm/figure2") for c in load_table(t).computable]
            runs = {resolve(cell, scale).run for cell in cells if cell.column == column}
            assert runs == {resolve(find_cell(f"edm/table2/a/{column}"), scale).run}


@pytest.mark.parametrize(
    ("cell", "parameters"),
    [
        ("edm/table3/ours/imagenet64-adm", 295_904_454),
        ("edm/imagenet64/e-deterministic/imagenet64-adm", 295_899_267),
        ("edm/table3/ours/cifar10-uncond-vp", 61_804_419),
        ("edm/table3/ours/cifar10-uncond-ve", 62_758_787),
    ],
)
def test_the_networks_have_the_published_number_of_parameters(cell: str, parameters: int) -> None:
    from repro.cells import resolve
    from repro.verbs.showing import describe

    assert describe(resolve(find_cell(cell)))["parameters"] == parameters


BASE = """
title = "t"\npaper = "p"\nsource = "s"\nchosen = "c"\nmetric = "FID"\nmini_columns = ["x"]
[columns]\nx = "X"\ny = "Y"
"""


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ('[rows.g]\nlabel = "G"', ["x", "y"]),
        ('[rows.g]\nlabel = "G"\ncells.y = { FID = 1 }', ["y"]),
        ('[rows.g]\nlabel = "G"\ncells.yy = { FID = 1 }', "column 'yy' that the table has not; did you mean 'y'"),
        ("[rows.g]\ncells.y = { FID = 1 }", r"\[rows.g\] has no label"),
        ('[rows.g]\nlable = "G"', r"\[rows.g\] has no label; did you mean 'lable'"),
        ('[rows.g]\nlabel = "G"\ncells.y = { FIDD = 1 }', "has a value of 'FIDD' in y; did you mean 'FID'"),
        ('[rows.g]\nlabel = "G"\n[paper_only]\nspeed = "no"', "paper_only. has a metric 'speed' that is not shown"),
    ],
)
def test_rows_of_one_s_own(rows: str, outcome: object, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that no paper has values for has a cell in every column; a mistyped column is an error."""
    from pathlib import Path

    from repro import tables

    folder = Path(str(tmp_path))
    (folder / "a_b.toml").write_text(BASE + rows)
    monkeypatch.setattr(assets, "tables_dir", lambda: folder)
    monkeypatch.setattr(tables, "table_names", lambda: ("a/b",))
    load = tables.load_table.__wrapped__
    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=outcome):
            load("a/b")
    else:
        assert [cell.column for cell in load("a/b").cells] == outcome

"""Pictures: what is drawn, from which numbers, and that equal records give equal bytes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from record_factory import make_record, resolved, write_values

from repro.cli import main
from repro.errors import UsageError
from repro.results.collect import Collection, collect
from repro.results.plotting import as_bytes, draw, points
from repro.results.records import write_record
from repro.tables import load_table

FIGURE = load_table("edm/figure2")
COLUMN = "cifar10-uncond-vp"


def write(runs: Path, row: str, nfe: float, values: tuple[float, float, float], table: str = "edm/figure2") -> None:
    base = resolved(f"{table}/{row}/{COLUMN}")
    for k, value in enumerate(values):
        write_record(runs, make_record(base, value, range=k, nfe=nfe))


@pytest.fixture
def small(runs: Path) -> Collection:
    write(runs, "algorithm1-16", 11, (9.0, 8.0, 10.0))
    write(runs, "algorithm1-64", 17, (5.0, 6.0, 7.0))
    write(runs, "heun-8", 11, (4.0, 4.5, 5.0))
    return collect(FIGURE, "mini", [runs], FIGURE.select(None, [COLUMN]))


def test_points_are_the_minimum_over_ranges_with_their_extent(small: Collection) -> None:
    assert points(small, small.cells) == {
        "algorithm1": [(11.0, 8.0, 8.0, 10.0), (17.0, 5.0, 5.0, 7.0)],
        "heun": [(11.0, 4.0, 4.0, 5.0)],
    }


def test_rows_of_the_other_table_are_points_of_the_curves(small: Collection, runs: Path) -> None:
    write(runs, "algorithm1", 39, (3.0, 3.5, 4.0), table="edm/table3")
    table = load_table("edm/table3")
    also = collect(table, "mini", [runs], table.select(None, [COLUMN]))
    found = points(small, [*small.cells, *also.cells])["algorithm1"]
    assert [point[0] for point in found] == [11.0, 17.0, 39.0]
    assert draw(small, also).axes[0].get_title() == FIGURE.columns[COLUMN]


def test_a_curve_is_drawn_with_its_label(small: Collection) -> None:
    (axes,) = draw(small).axes
    assert axes.get_legend_handles_labels()[1] == ["Algorithm 1 (Euler)", "+ Heun and our t_i"]
    assert axes.get_xlabel() == "NFE" and axes.get_ylabel().startswith("digits FD")


def test_equal_records_give_equal_bytes(small: Collection) -> None:
    for form in ("png", "svg"):
        assert as_bytes(draw(small), form) == as_bytes(draw(small), form)
    ElementTree.fromstring(as_bytes(draw(small), "svg"))


def test_a_table_is_drawn_as_dots_beside_the_paper_s(runs: Path) -> None:
    table = load_table("edm/table2")
    write_values(runs, "edm/table2/e/cifar10-cond-vp", [1.5, 1.7])
    collection = collect(table, "mini", [runs], table.select(None, ["cifar10-cond-vp"]))
    ours, beside = draw(collection).axes
    assert ours.containers[0][0].get_ydata().tolist() == [pytest.approx(1.6)]  # type: ignore[index]
    assert list(beside.lines[0].get_ydata()) == [2.48, 2.18, 2.08, 2.09, 1.88, 1.79]


def test_nothing_to_draw_is_said(runs: Path) -> None:
    with pytest.raises(UsageError, match="no value to draw"):
        draw(collect(FIGURE, "mini", [runs], FIGURE.select(None, [COLUMN])))


@pytest.mark.parametrize(
    ("out", "names"), [("a", ["a.png", "a.svg"]), ("b.svg", ["b.svg"]), ("c.d", ["c.d.png", "c.d.svg"])]
)
def test_the_verb_writes_files(
    small: Collection, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, names: list[str]
) -> None:
    words = ["plot", "edm/figure2", "--scale", "mini", "--runs", str(runs), "--columns", COLUMN]
    assert main([*words, "--out", str(tmp_path / "new" / out)]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert "not drawn, no value: 22 of 25 cells" in printed
    assert (tmp_path / "new" / names[0]).read_bytes()[:4] in (b"\x89PNG", b"<?xm")

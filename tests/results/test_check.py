from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from record_factory import F_VP, resolved, write_values

from repro.cells import experiment_digest
from repro.cli import main
from repro.results.check import Line, Report, check_statistics, junit
from repro.results.collect import collect
from repro.tables import find_cell, load_table

E_VP = "edm/table2/e/cifar10-cond-vp"
VALUES = [1.00, 1.04, 0.97, 1.02, 0.99, 1.01, 0.98, 1.03]
WORSE = 1.3
MILD = 1.115  # p about 0.006: outside a single cell's band, within that of 12 cells


def commit(folder: Path, *cells: str, **changes: Any) -> None:
    content = {
        cell: {
            "experiment": experiment_digest(resolved(cell)),
            "seeds": list(range(1000, 1008)),
            "values": VALUES,
            **changes,
        }
        for cell in cells
    }
    (folder / "mini.json").write_text(json.dumps({"cells": content}))


def report(runs: Path, *cells: str, allow_stale: bool = False) -> Report:
    table = load_table("edm/table2")
    return check_statistics(collect(table, "mini", [runs], [find_cell(cell) for cell in cells]), allow_stale)


def test_an_unmoved_cell_holds(committed: Path, runs: Path) -> None:
    commit(committed, F_VP)
    write_values(runs, F_VP, [1.01, 0.99, 1.03])
    found = report(runs, F_VP)
    assert found.exit_code == 0 and found.lines[0].verdict == "holds"
    assert "against 1.005, band " in found.lines[0].text and "power 97% for 4 sd" in found.lines[0].text


@pytest.mark.parametrize("value", [WORSE, 1 / WORSE])
def test_a_worse_or_too_good_cell_is_outside(committed: Path, runs: Path, value: float) -> None:
    commit(committed, F_VP)
    write_values(runs, F_VP, [value])
    found = report(runs, F_VP)
    assert found.exit_code == 1 and found.lines[0].verdict == "outside"


def test_one_worse_cell_among_many_is_noticed(committed: Path, runs: Path) -> None:
    cells = [f"edm/table2/{row}/cifar10-cond-{column}" for row in "abcdef" for column in ("vp", "ve")]
    commit(committed, *cells)
    for cell in cells:
        write_values(runs, cell, [WORSE if cell == F_VP else 1.0])
    found = report(runs, *cells)
    assert found.exit_code == 1
    assert [line.cell for line in found.lines if line.verdict == "outside"] == [F_VP]


def test_one_mild_cell_is_within_the_rule_of_the_table_and_two_are_not(committed: Path, runs: Path) -> None:
    cells = [f"edm/table2/{row}/cifar10-cond-{column}" for row in "abcdef" for column in ("vp", "ve")]
    commit(committed, *cells)
    for cell in cells:
        write_values(runs, cell, [MILD if cell == F_VP else 1.0])
    found = report(runs, *cells)
    assert found.exit_code == 0 and [line.verdict for line in found.lines].count("outside") == 1
    suite = ElementTree.fromstring(junit([found]).encode())[0]
    assert suite.get("failures") == "0" and len(suite.findall(".//system-out")) == 1


def test_without_a_reference_nothing_is_comparable(committed: Path, runs: Path) -> None:
    write_values(runs, F_VP, [1.0])
    found = report(runs, F_VP, E_VP)
    assert found.exit_code == 3
    assert [line.text for line in found.lines] == ["no reference to compare with", "no record"]


def test_the_seeds_of_the_reference_are_not_fresh(committed: Path, runs: Path) -> None:
    commit(committed, F_VP)
    write_values(runs, F_VP, VALUES, first_seed=1000)
    found = report(runs, F_VP)
    assert found.exit_code == 3 and found.lines[0].text == "its seeds are the reference's own; make fresh ones"
    write_values(runs, F_VP, [WORSE])
    assert report(runs, F_VP).exit_code == 1  # the fresh value alone is judged


def test_a_reference_of_another_configuration_gives_no_verdict(committed: Path, runs: Path) -> None:
    commit(committed, F_VP, experiment="0" * 64)
    write_values(runs, F_VP, [1.0])
    found = report(runs, F_VP)
    assert found.exit_code == 3 and "another configuration" in found.lines[0].text


def test_a_value_that_is_no_distance_gives_no_verdict(committed: Path, runs: Path) -> None:
    commit(committed, F_VP)
    write_values(runs, F_VP, [0.0])
    found = report(runs, F_VP)
    assert found.exit_code == 3 and found.lines[0].text == "no verdict: 0.0 is not a positive distance"


def test_stale_records_need_permission(committed: Path, runs: Path) -> None:
    write_values(runs, F_VP, [1.0], sources_sha256="f" * 64)
    assert report(runs, F_VP, allow_stale=True).lines[0].text == "no reference to compare with"
    import repro.results.references as module

    commit(committed, F_VP)
    module.load_references.cache_clear()
    found = report(runs, F_VP)
    assert found.exit_code == 3 and "--allow-stale" in found.lines[0].text
    assert report(runs, F_VP, allow_stale=True).exit_code == 0


def test_junit_is_xml_with_every_cell() -> None:
    lines = [Line("a", "holds", ""), Line("b", "outside", 'x < "y" & z'), Line("c", "skipped", "no record")]
    text = junit([Report("edm/table2 <&>", lines, 1, "rule")])
    suite = ElementTree.fromstring(text.encode())[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        "edm/table2 <&>", "3", "1", "1",
    )  # fmt: skip
    assert suite[1][0].tag == "failure" and suite[1][0].get("message") == 'x < "y" & z'
    assert suite[2][0].get("message") == "no record"


def command(runs: Path, *more: str) -> list[str]:
    cell = ["--rows", "f", "--columns", "cifar10-cond-vp"]
    return ["check", "edm/table2", "--scale", "mini", *cell, "--runs", str(runs), *more]


def test_command_line(committed: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(committed, F_VP)
    assert main(command(runs)) == 3
    assert capsys.readouterr().out.endswith("skipped  edm/table2/f/cifar10-cond-vp  no record\nnothing comparable\n")
    write_values(runs, F_VP, [1.0])
    file = tmp_path / "report.xml"
    assert main(command(runs, "--junit", str(file))) == 0
    assert capsys.readouterr().out.endswith("\nholds\n")
    assert ElementTree.parse(file).getroot()[0].get("failures") == "0"
    assert main(command(runs, "--json")) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == 0 and content["cells"][0]["cell"] == F_VP


def test_command_line_outside_and_stale(committed: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(committed, F_VP)
    write_values(runs, F_VP, [WORSE], sources_sha256="f" * 64)
    assert main(command(runs)) == 3
    assert main(command(runs, "--allow-stale")) == 1
    assert capsys.readouterr().out.endswith("OUTSIDE\n")


def test_a_malformed_reference_is_one_line(committed: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (committed / "mini.json").write_text("{")
    write_values(runs, F_VP, [1.0])
    assert main(command(runs)) == 2
    error = capsys.readouterr().err
    assert error.startswith("repro: ") and error.count("\n") == 1 and "mini.json" in error

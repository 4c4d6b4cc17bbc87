from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from record_factory import F_VP, make_record, resolved, write_values

from repro.cli import main
from repro.results.collect import STALE, Collection, collect
from repro.results.records import Metric, write_record
from repro.results.render import FORMATS, grid, notes, render
from repro.tables import load_table

E_VP = "edm/table2/e/cifar10-cond-vp"
TABLE = load_table("edm/table2")


@pytest.fixture(autouse=True)
def _without_references(committed: Path) -> None:
    pass


@pytest.fixture
def small(runs: Path) -> Collection:
    """Rows E and F of one column: E once and stale, F three times."""
    write_values(runs, E_VP, [2.345], sources_sha256="f" * 64)
    write_values(runs, F_VP, [1.0, 1.1, 1.2])
    return collect(TABLE, "mini", [runs], TABLE.select(["e", "f"], ["cifar10-cond-vp"]))


def test_markdown(small: Collection) -> None:
    table, _, text = render(small, "md", ["Caption."]).partition("\n\n")
    assert table == "\n".join(
        [
            "|                             | CIFAR-10 cond. VP: digits FD   | paper's FID   |",
            "|-----------------------------|--------------------------------|---------------|",
            "| E: + Our loss function      | 2.35† stale                    | 1.88          |",
            "| F: + Non-leaky augmentation | 1.10 ± 0.10 (3)                | 1.79          |",
        ]
    ).replace("2.35†", f"{2.345:.2f}†".ljust(5))
    assert text.splitlines()[0] == "- Caption."
    assert f"- {STALE}: e/cifar10-cond-vp." in text


def test_latex(small: Collection) -> None:
    title = dataclasses.replace(TABLE, chosen=r"50 % of A_B & {C} #1 $2 ~x^2 \d ± †")
    text = render(dataclasses.replace(small, table=title), "latex", [])
    assert r"1.10 $\pm$ 0.10 (3)" in text and r"$^\dagger$ stale" in text
    assert (
        r"50 \% of A\_B \& \{C\} \#1 \$2 \textasciitilde{}x\textasciicircum{}2 \textbackslash{}d $\pm$ $^\dagger$."
    ) in text
    assert "±" not in text and "†" not in text
    assert text.startswith("\\begin{table}\n\\begin{tabular}{lll}")
    assert text.endswith("}\n\\end{table}")


def test_latex_escapes_cells(small: Collection) -> None:
    labels = {**TABLE.rows, "f": "F & 5% a_b"}
    assert r"F \& 5\% a\_b" in grid(
        dataclasses.replace(small, table=dataclasses.replace(TABLE, rows=labels)), "latex_booktabs"
    )


def test_html(small: Collection) -> None:
    labels = {**TABLE.rows, "f": "F <b> & more"}
    text = render(dataclasses.replace(small, table=dataclasses.replace(TABLE, rows=labels)), "html", ["a < b & c"])
    assert "F &lt;b&gt; &amp; more" in text and "<li>a &lt; b &amp; c</li>" in text
    root = ElementTree.fromstring(f"<div>{text}</div>")
    cells = [[(cell.text or "").strip() for cell in row] for row in root.iter("tr")]
    assert cells[2][1:] == ["1.10 ± 0.10 (3)", "1.79"]


def test_csv(small: Collection) -> None:
    frame = pd.read_csv(io.StringIO(render(small, "csv", ["not in a CSV"])), keep_default_na=True)
    assert list(frame["cell"]) == [E_VP, F_VP]
    assert list(frame["paper FID"]) == [1.88, 1.79] and list(frame["paper NFE"]) == [35, 35]
    assert list(frame["n"]) == [1, 3] and frame["mean"][1] == pytest.approx(1.1) and pd.isna(frame["sd"][0])


def test_json(small: Collection, runs: Path) -> None:
    content = json.loads(render(small, "json", ["Caption."]))
    assert (content["table"], content["scale"], content["notes"][0]) == ("edm/table2", "mini", "Caption.")
    e, f = content["cells"]
    assert e["sd"] is None and e["stale"] and e["inferred"].startswith("data-set x-flips")
    assert f["inferred"] is None and not f["starred"] and (f["mean"], f["n"]) == (pytest.approx(1.1), 3)
    assert f["paper FID"] == 1.79 and f["metric"] == "digits FD"
    assert [replicate["seed"] for replicate in f["replicates"]] == [0, 1, 2]
    milestone = resolved().selection().milestones()[-1]
    assert f["replicates"][2] == {
        "seed": 2, "value": 1.2, "milestone_nimg": milestone, "range": 0, "candidates": 1, "NFE": 15.0, "stale": False,
        "metrics": {"digits FD": 1.2}, "over_ranges": [1.2],
    }  # fmt: skip


def test_json_has_no_nan(runs: Path) -> None:
    base = resolved()
    metrics = {"digits FD": Metric(1.0, 2000, "p"), "digits IS": Metric(float("nan"), 2000, "p")}
    write_record(runs, make_record(base, 1.0, metrics=metrics))
    collection = collect(TABLE, "mini", [runs], TABLE.select(["f"], ["cifar10-cond-vp"]))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    content = json.loads(render(collection, "json", []), parse_constant=refuse)
    assert content["cells"][0]["replicates"][0]["metrics"] == {"digits FD": 1.0, "digits IS": None}


def test_every_value_of_the_paper_stands_beside_ours(tmp_path: Path) -> None:
    everything = collect(TABLE, "full", [tmp_path], TABLE.cells)
    lines = grid(everything, "github").splitlines()
    assert len(lines) == 2 + 6
    for row, line in zip(TABLE.rows, lines[2:], strict=True):
        cells = [text.strip() for text in line.strip("|").split("|")]
        assert cells[0] == TABLE.rows[row] and len(cells) == 17
        for index, column in enumerate(TABLE.columns):
            cell = TABLE.cell(row, column)
            assert cell is not None
            assert cells[1 + 2 * index] == "missing"
            assert cells[2 + 2 * index] == f"{cell.reference['FID']:.2f}" + ("*" if cell.starred else "")
    said = notes(everything)
    assert any(line.startswith("* Evaluated by the paper") for line in said)
    assert any(line.startswith("† A: ") for line in said) and any(line.startswith("† B, C, D, E: ") for line in said)


def test_unused_files_are_listed(runs: Path) -> None:
    (path,) = write_values(runs, F_VP, [1.0])
    path.write_text("{")
    collection = collect(TABLE, "mini", [runs], TABLE.select(["f"], ["cifar10-cond-vp"]))
    assert [line for line in notes(collection) if line.startswith(f"Not used: {path}: ")]


@pytest.mark.parametrize("form", FORMATS)
def test_command_line(form: str, runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_values(runs, F_VP, [1.0, 1.1])
    out = tmp_path / "deep" / f"table.{form}"
    words = ["collect", "edm/table2", "--scale", "mini", "--rows", "f", "--runs", str(runs), "--data", str(data)]
    assert main([*words, "--format", form, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text() == printed and ("1.05" in printed)
    assert ("missing" in printed) == (form in ("md", "latex", "html", "svg"))


def test_every_shown_metric_has_ours_and_the_paper_s(runs: Path) -> None:
    table = load_table("edm/table3")
    base = resolved("edm/table3/rk45/cifar10-uncond-vp")
    for k in range(3):
        write_record(runs, make_record(base, 3.0 + k, range=k, nfe=34.25))
    text = render(collect(table, "mini", [runs], table.select(["original", "rk45"], ["cifar10-uncond-vp"])), "md", [])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "CIFAR-10 uncond. VP: digits FD", "paper's FID", "NFE", "paper's NFE"]
    assert lines[2] == ["Original sampler", "reference only", "2.85", "", "256"]
    assert lines[3] == ["Black-box RK45", "3.00† [4.00 ± 1.00]", "2.94*", "34.25", "115"]
    assert "In brackets: mean and sd over the 3 ranges of which our value is the minimum." in text
    assert "† rk45: inferred setting" in text and "* Evaluated by the paper from published weights" in text
    assert "reference only: the original samplers" in text

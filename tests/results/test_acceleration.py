"""Images to reach a score, by hand, and the ratio over seeds from records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from record_factory import make_record, resolved

from repro.cells import Resolved
from repro.cli import main
from repro.errors import MissingPrerequisite
from repro.results.acceleration import best, images_to_reach, ratios
from repro.results.collect import collect
from repro.results.records import write_record
from repro.tables import find_cell, load_table

COLUMN = "cifar10-uvit-s2"


def write_curve(runs: Path, row: str, seed: int, values: list[float]) -> None:
    """Previews of a replicate at its ten milestones, and the evaluation of the best."""
    base = resolved(f"scalelong/table1/{row}/{COLUMN}", seed=seed)
    preview = base.preview()
    assert isinstance(preview, Resolved)
    places = base.selection().milestones()
    for place, value in zip(places, values, strict=True):
        write_record(runs, make_record(preview, value, milestone_nimg=place))
    chosen = places[values.index(min(values))]
    write_record(runs, make_record(base, min(values) - 1, milestone_nimg=chosen))


def test_straight_lines_between_candidates() -> None:
    curve = [(100, 9.0), (200, 5.0), (300, 6.0), (400, 1.0)]
    assert images_to_reach(curve, 9.5) == 100
    assert images_to_reach(curve, 7.0) == 150 and images_to_reach(curve, 5.0) == 200
    assert images_to_reach(curve, 3.5) == 350
    assert math.isnan(images_to_reach(curve, 0.5))
    assert images_to_reach([(100, math.nan), (200, 2.0)], 3.0) == 200
    assert best([(100, 3.0), (200, 1.0), (300, 1.0)]) == (200, 1.0)


def test_ratio_by_seed_and_its_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = [100.0 - 10 * k for k in range(10)]  # ends at 10, at 128,000 images
    fast = [100.0 - 20 * k for k in range(5)] + [10.0] * 5  # 20 at the fifth candidate, 10 at the sixth
    write_curve(tmp_path, "none", 0, slow)
    write_curve(tmp_path, "cs", 0, fast)
    write_curve(tmp_path, "none", 1, slow)
    write_curve(tmp_path, "cs", 1, [value + 5 for value in slow])
    cells = [find_cell(f"scalelong/table1/{row}/{COLUMN}") for row in ("none", "cs", "ls")]
    found = ratios(collect(load_table("scalelong/table1"), "mini", [tmp_path], cells), "none")
    assert [(r.row, r.seeds) for r in found] == [("none", (0, 1)), ("cs", (0, 1))]
    baseline, cs = found
    assert baseline.ratios == (1.0, 1.0) and baseline.sd == 0
    assert cs.ratios[0] == pytest.approx(10 / 6) and math.isnan(cs.ratios[1]) and cs.best == 12.5
    assert cs.mean == pytest.approx(10 / 6) and math.isnan(cs.sd)
    words = ["scalelong/table1", "--scale", "mini", "--runs", str(tmp_path)]
    assert main(["acceleration", *words]) == 0
    text = capsys.readouterr().out
    assert "| 1 of 2 seeds" in text and "1.67" in text and "1.00 ± 0.00" in text
    assert main(["acceleration", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["ratios"] == [pytest.approx(10 / 6), None]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["scalelong/table1"], 3, "no record of a preview of row none"),
        (["scalelong/table1", "--baseline", "nnone"], 2, "has no row 'nnone'; did you mean 'none'?"),
        (["edm/table2"], 2, "table edm/table2 has no previews"),
    ],
)
def test_what_cannot_be_compared(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acceleration", *words, "--scale", "mini", "--runs", str(tmp_path)]) == code
    assert said in capsys.readouterr().err


def test_without_curves_it_says_so(tmp_path: Path) -> None:
    table = load_table("scalelong/table1")
    nothing = collect(table, "mini", [tmp_path], [find_cell(f"scalelong/table1/none/{COLUMN}")])
    with pytest.raises(MissingPrerequisite, match="no record of a preview of row none .* at mini: `repro reproduce"):
        ratios(nothing, "none")

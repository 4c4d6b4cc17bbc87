"""`repro ema`: lengths, what is refused, and a sweep that trains once."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest

from repro.cli import main
from repro.errors import UsageError
from repro.verbs.ema import lengths

CELL = "edm2/table1/g/imagenet512"
SHORT = (
    "FinalSnapshot.total_nimg = 268_435_456",
    "Evaluation.num_samples = 2_000",
    "edm2_sampler.num_steps = 8",
    "PostHocEMA.std = 0.1",
)


def test_lengths() -> None:
    assert lengths(["0.1"]) == [0.1]
    assert lengths(["0.05..0.25"]) == [0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25]
    assert lengths(["0.01..0.25..0.005"])[1:3] == [0.015, 0.02] and len(lengths(["0.01..0.25..0.005"])) == 49
    assert lengths(["0.2,0.1", "0.1"]) == [0.1, 0.2]
    assert lengths(["0.010,0.015,...,0.250"]) == lengths(["0.01..0.25..0.005"])
    assert lengths(["0.010,0.015,...,0.030"]) == [0.01, 0.015, 0.02, 0.025, 0.03]
    assert lengths(["0.05, 0.1"]) == [0.05, 0.1]
    assert lengths(["0.1", "0.15", "...", "0.25"]) == [0.1, 0.15, 0.2, 0.25]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a", "write 0.1"),
        ("0.2..0.1", "the first below the last"),
        ("0.1..0.2..0.3..0.4", "FIRST..LAST..STEP"),
        ("0.05..0.25..0.07", "do not lead"),
        ("0.1..0.2..-0.05", "a step is above 0, not -0.05"),
        ("0.1..0.2..0", "a step is above 0, not 0"),
        ("0.1..0.2..nan", "a step is above 0, not nan"),
        ("0.1..0.2..0.3", "do not lead"),
        ("0.1..0.2..1e-6", "more than 100 lengths"),
        ("", "write 0.1"),
        ("0.1;0.2", "write 0.1"),
        ("0.1,0.3", "between 0"),
        ("0.2,0.1,...,0.1", "a step is above 0"),
        ("0.05,0.06,...", "write 0.1"),
        ("0.06,...,0.25", "write 0.1"),
        ("...,0.25", "write 0.1"),
        ("0.1,0.1,...,0.2", "a step is above 0, not 0"),
        ("0.2,0.1,...,0.15", "a step is above 0"),
        ("0.01,0.02,...,0.055", "do not lead"),
        ("0.29", "between 0 and 0.2887"),
        ("0", "between 0"),
        ("nan", "between 0"),
    ],
)
def test_mistaken_lengths(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lengths([word])


@pytest.mark.parametrize(
    ("cell", "std", "message"),
    [
        (CELL, "0.005", "possible: std 0.01"),
        ("edm2/table1/a/imagenet512", "0.1", "only a PostHocEMA has other lengths"),
        ("edm/table2/f/ffhq-vp", "0.1", "only a PostHocEMA has other lengths"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    cell: str, std: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ema", cell, "--std", std, "--scale", "mini", "--runs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_trains_once_and_draws_a_curve(tmp_path: Path) -> None:
    command = ["ema", CELL, "--std", "0.09..0.11..0.01", "--scale", "ci", "--jobs", "1"]
    command += ["--runs", str(tmp_path), "--data", str(helpers.data_dir())]
    command += [word for binding in SHORT for word in ("--gin", binding)]
    first = helpers.cli(*command)
    assert first.returncode == 0, first.stderr
    assert "3 of 3 records to compute: 1 training run" in first.stderr
    assert "the row's" in first.stdout and first.stdout.count("best") == 1
    for form in ("png", "svg"):
        assert (tmp_path / f"ema-edm2-table1-g-imagenet512.ci.{form}").stat().st_size > 1000
    again = helpers.cli(*command, "--json")
    assert "nothing to compute: all 3 records are there" in again.stderr
    found = json.loads(again.stdout)
    assert [point["std"] for point in found["points"]] == [0.09, 0.1, 0.11]
    values = [point["values"][0] for point in found["points"]]
    assert len(set(values)) == 3, "every length gave the same images"
    assert found["best"] == found["points"][values.index(min(values))]["std"]

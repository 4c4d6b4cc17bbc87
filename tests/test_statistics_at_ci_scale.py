"""The whole path in a minute: two cells, three fresh replicates each, against their committed references."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.cli import main


@pytest.mark.slow
def test_two_cells_are_still_what_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--rows", "d", "e", "--columns", "cifar10-cond-vp", "--scale", "ci"]
    folders = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    assert main(["reproduce", "edm/table2", *where, *folders, "--seeds", "3", "--jobs", "2"]) == 0
    first = capsys.readouterr()
    assert main(["check", "edm/table2", *where, *folders]) == 0
    verdict = capsys.readouterr().out
    assert verdict.count("  holds ") == 2 and "power" in verdict
    assert main(["reproduce", "edm/table2", *where, *folders, "--seeds", "3"]) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "nothing to compute" in again.err

"""`repro clean`: what goes, what stays, and that a dry run touches nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest

from repro.cells import resolve
from repro.cli import main
from repro.config import build
from repro.launch.claims import Claim, acquire
from repro.launch.clean import _asked
from repro.tables import find_cell


def files(runs: Path) -> dict[str, bytes]:
    found = [path for path in runs.rglob("*") if path.is_file() and "claims" not in path.parts]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(autouse=True)
def one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of all tables at all scales take a minute to resolve for the first time."""
    monkeypatch.setattr("repro.launch.clean.table_names", lambda: ("edm/table2",))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a spare snapshot, a damaged checkpoint, a torn file, and blocks of scored images."""
    helpers.compute(tmp_path)
    (folder,) = (path.parent for path in tmp_path.glob("*/manifest.json"))
    (snapshot, *_) = (folder / "ema").iterdir()
    shutil.copy(snapshot, folder / "ema" / "0000000.001-std0.050.safetensors")
    (folder / "checkpoint-000000000001-0123456789abcdef.pt.damaged").write_bytes(b"x")
    (folder / "ema" / ".x.safetensors.1-a.tmp").write_bytes(b"x")
    (record,) = folder.glob("eval/*/*/range0/record.json")
    (record.parent / "partial-0123").mkdir()
    (record.parent / "partial-0123" / "0.npz").write_bytes(b"x")
    return folder


def test_what_nothing_needs_goes_and_the_rest_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run.parent)
    assert main(["clean", "--runs", str(run.parent)]) == 0
    assert "could be freed; --yes frees them" in capsys.readouterr().out
    assert files(run.parent) == before
    assert main(["clean", "--runs", str(run.parent), "--yes", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert line["state"] == "freed" and sum(line["files"].values()) == 4
    gone = set(before) - set(files(run.parent))
    assert sorted(Path(name).name for name in gone) == [
        ".x.safetensors.1-a.tmp",
        "0.npz",
        "0000000.001-std0.050.safetensors",
        "checkpoint-000000000001-0123456789abcdef.pt.damaged",
    ]
    assert {name: content for name, content in before.items() if name not in gone} == files(run.parent)
    assert main(["clean", "--runs", str(run.parent)]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_a_run_that_is_worked_on_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = acquire(run)
    assert isinstance(claim, Claim)
    before = files(run.parent)
    with claim:
        assert main(["clean", "--runs", str(run.parent), "--yes"]) == 0
    assert "a living process works on it" in capsys.readouterr().out
    assert files(run.parent) == before


def test_a_run_of_no_cell_and_without_a_record_keeps_its_snapshots(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "eval")
    assert main(["clean", "--runs", str(run.parent), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert "a snapshot that no cell and no record needs" not in line["files"]
    (run / "manifest.json").write_text("{")
    assert main(["clean", "--runs", str(run.parent), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert line["state"] == "its manifest cannot be read" and not line["files"]


def test_no_folder_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "--runs", str(tmp_path / "none")]) == 3
    assert "--runs names another" in capsys.readouterr().err


def test_a_record_of_a_guided_cell_needs_its_guides_snapshots_too() -> None:
    bindings = ["Guide.milestone_nimg = 1_073_741_824"]  # a time that no cell of the tables looks at
    resolved = resolve(find_cell("edm2/table2/xs-cfg/imagenet512"), "full", bindings)
    own, guide = resolved.legs
    record = SimpleNamespace(
        config=resolved.config, trajectory_hash=own.trajectory_hash, milestone_nimg=own.milestones[-1]
    )
    asked = dict(_asked(record))  # type: ignore[arg-type]
    assert list(asked) == [own.trajectory_hash, guide.trajectory_hash]
    for leg in (own, guide):
        ema, milestones = asked[leg.trajectory_hash]
        assert (ema, list(milestones)) == (build(leg.ema), list(leg.milestones))

"""The record of training dynamics: what it holds, that it moves nothing, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
import torch
from torch import nn

from repro.cells import resolve
from repro.cli import main
from repro.errors import MissingPrerequisite
from repro.results.dynamics import draw, summary
from repro.results.plotting import as_bytes
from repro.tables import find_cell
from repro.training.dynamics import FILE, Magnitudes, Recorder, layers, read

RECORDED = (*helpers.TINY, "Execution.dynamics = 8")


class Toy(nn.Module):
    """Two blocks: x -> 2 x, then the sum with its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "none": nn.ReLU()})
        with torch.no_grad():
            self.enc["first"].weight.copy_(2 * torch.eye(4))
            self.enc["first"].bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.enc["second"](self.enc["first"](x))
        return found


def test_magnitudes_are_those_of_the_layer_and_the_step(tmp_path: Path) -> None:
    net = Toy()
    assert list(layers(net)) == ["enc.first", "enc.second"]
    recorder = Recorder(net, tmp_path, points=2, total=100)
    assert [n for n in range(0, 100, 10) if recorder.is_due(n, 10)] == [0, 40, 90]
    with recorder.watching(0):
        net(torch.full((3, 4), 0.5))
        with torch.no_grad():
            net.enc["first"].weight.add_(0.25)
    found = read(tmp_path)[0]
    assert found["enc.first"] == Magnitudes(activation=1.0, weight=1.0, update=0.25)
    assert found["enc.second"].update == 0
    assert not net.enc["first"]._forward_hooks
    with pytest.raises(RuntimeError), recorder.watching(10):
        raise RuntimeError
    assert list(read(tmp_path)) == [0] and not net.enc["first"]._forward_hooks


def test_recording_moves_no_bit(tmp_path: Path) -> None:
    helpers.compute(tmp_path / "plain")
    helpers.compute(tmp_path / "recorded", RECORDED)
    assert helpers.snapshot_bytes(tmp_path / "plain") == helpers.snapshot_bytes(tmp_path / "recorded")
    (folder,) = (path.parent for path in (tmp_path / "recorded").glob(f"*/{FILE}"))
    history = read(folder)
    assert len(history) == 9 and 0 in history
    assert all(found.activation > 0 and found.weight > 0 for found in history[0].values())
    assert not list((tmp_path / "plain").glob(f"*/{FILE}"))


def test_a_step_taken_twice_counts_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    lines = [{"nimg": n, "layers": {"a": [1.0, 2.0, value]}} for n, value in ((0, 0.0), (8, 0.1), (8, 0.2))]
    (tmp_path / FILE).write_text("\n".join([*map(json.dumps, lines), '{"nimg": 16, "lay']))
    assert read(tmp_path) == {0: {"a": Magnitudes(1, 2, 0)}, 8: {"a": Magnitudes(1, 2, 0.2)}}
    with pytest.raises(MissingPrerequisite, match=r"Execution.dynamics = 32"):
        read(tmp_path / "nowhere")


def test_the_summary_says_what_drifts() -> None:
    steady, growing = Magnitudes(1.0, 1.0, 0.01), Magnitudes(1.0, 1.0, 0.01)
    history = {0: {"a": steady, "b": growing}, 8: {"a": steady, "b": growing}}
    history[16] = {"a": steady, "b": Magnitudes(4.0, 2.0, 0.01)}
    by_name = {line["quantity"]: line for line in summary(history)}
    assert by_name["activation"]["most drifted"] == "b" and by_name["activation"]["its drift"] == 4
    assert by_name["weight"]["its drift"] == 2 and by_name["weight"]["drift"] == 1.5
    assert by_name["relative update"]["its drift"] == 0.5
    assert as_bytes(draw({"one": history, "two": history}), "png").startswith(b"\x89PNG")


def test_the_report_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dynamics", helpers.CELL, "--scale", "ci", "--runs", str(tmp_path)]
    words += [word for binding in RECORDED for word in ("--gin", binding)]
    assert main(words) == 3
    assert "was not trained in these runs" in capsys.readouterr().err
    helpers.compute(tmp_path, RECORDED)
    assert main([*words, "--json"]) == 0
    (lines,) = json.loads(capsys.readouterr().out).values()
    assert [line["quantity"] for line in lines] == ["activation", "weight", "relative update"]
    assert (tmp_path / "dynamics.ci.png").exists() and (tmp_path / "dynamics.ci.svg").exists()
    assert (
        resolve(find_cell(helpers.CELL), "ci", RECORDED).run == resolve(find_cell(helpers.CELL), "ci", helpers.TINY).run
    )

"""Compiled graphs: an execution option, outside every identity."""

from __future__ import annotations

from pathlib import Path

import helpers
import pytest
import torch
from torch import nn

from repro.cells import resolve
from repro.errors import MissingPrerequisite
from repro.results.records import read_all
from repro.tables import find_cell
from repro.training.compiling import compile_network

COMPILED = (*helpers.TINY, "Execution.compile = True")


def test_it_is_part_of_no_identity() -> None:
    cell = find_cell(helpers.CELL)
    plain, compiled = resolve(cell, "ci", helpers.TINY), resolve(cell, "ci", COMPILED)
    assert compiled.evaluation_hash == plain.evaluation_hash
    assert compiled.execution.args["compile"] and not plain.execution.args["compile"]


def test_training_and_sampling_go_through_the_compiled_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.compute(tmp_path / "eager")
    real, calls = nn.Module._call_impl, []

    def compiled(self: nn.Module) -> None:
        """In place of the compiler, which takes minutes: the same computation, counted."""

        def call(*args: object, **kwargs: object) -> object:
            calls.append(self.training)
            return real(self, *args, **kwargs)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    helpers.compute(tmp_path / "compiled", COMPILED)
    assert True in calls and False in calls
    eager, ours = (read_all([tmp_path / name])[0] for name in ("eager", "compiled"))
    assert {r.key: r.metrics for r in eager} == {r.key: r.metrics for r in ours}
    assert all(record.execution["compile"] for record in ours)


def test_a_compiled_layer_is_the_same_function() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    expected, keys = layer(x), list(layer.state_dict())
    try:
        compile_network(layer, "cpu")
    except MissingPrerequisite as error:
        pytest.skip(f"{error} (on Debian: apt install g++)")
    torch.testing.assert_close(layer(x), expected)
    assert list(layer.state_dict()) == keys


def test_without_a_compiler_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingPrerequisite, match=r"needs the C\+\+ compiler no-such-compiler"):
        compile_network(nn.Linear(1, 1), "cpu")

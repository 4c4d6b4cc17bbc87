from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mutants import F_VE, F_VP, FAULTS, Fault
from record_factory import resolved

from repro.cells import Resolved
from repro.results import fingerprint as module
from repro.results.check import check_fingerprints
from repro.results.fingerprint import Shared, differences, fingerprint
from repro.results.references import load_fingerprints
from repro.tables import load_table, table_names

FOUND: dict[str, dict[str, Any]] = {}


def cell(name: str) -> Resolved:
    return resolved(f"edm/table2/{name}")


@pytest.fixture
def healthy(data: Path) -> Any:
    def compute(name: str) -> dict[str, Any]:
        if name not in FOUND:
            FOUND[name] = fingerprint(cell(name), data)
        return FOUND[name]

    return compute


def test_the_same_twice_and_after_json(healthy: Any, data: Path) -> None:
    first = healthy(F_VP)
    assert fingerprint(cell(F_VP), data) == first
    assert differences(json.loads(json.dumps(first)), first) == []


@pytest.mark.parametrize("name", [F_VP, F_VE])
def test_is_the_committed_one(healthy: Any, name: str) -> None:
    assert differences(healthy(name), load_fingerprints("edm/table2")[f"edm/table2/{name}"]["values"]) == []


def test_cells_of_one_trajectory_share_its_steps_and_nothing_else(data: Path) -> None:
    names = ("edm/table3/ours/cifar10-uncond-vp", "edm/table4/optimal/cifar10-uncond-vp")
    shared: Shared = {}
    for name in names:
        assert fingerprint(resolved(name), data, shared) == fingerprint(resolved(name), data)
    assert len(shared) == 1


def test_leaves_the_number_of_threads_alone(data: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    fingerprint(cell(F_VP), data)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.label)
def test_a_planted_fault_is_noticed(fault: Fault, healthy: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = healthy(fault.cell)
    resolution = cell(fault.cell)
    fault.plant(monkeypatch)
    assert differences(fingerprint(resolution, data), reference)


def test_another_seed_is_another_fingerprint(healthy: Any, data: Path) -> None:
    assert differences(fingerprint(cell(F_VP).with_seed(1), data), healthy(F_VP))


def test_rounding_is_no_difference(healthy: Any) -> None:
    reference = healthy(F_VP)

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return value * (1 + 1e-8) if isinstance(value, float) else value

    other = {key: rounded(value) for key, value in reference.items()}
    assert other != reference
    assert differences(other, reference) == []


def test_every_form_of_difference_has_its_line() -> None:
    reference = {"a": [1.0, 2.0], "b": 3, "c": [1.0], "d": 1.0}
    found = {"a": [1.0, 2.1], "b": 4, "c": [], "e": 1.0}
    assert differences(found, reference) == [
        "d is only in one of them",
        "e is only in one of them",
        "a[1] is 2.1, was 2",
        "b is 4, was 3",
        "c: 0 numbers, were 1",
    ]
    assert differences({"a": math.nan}, {"a": 1.0}) == ["a is nan, was 1"]
    assert differences({"pixels": [100.0, 0.1]}, {"pixels": [100.0, 0.0]}) == []
    assert module.TOLERANCES["sampler_end"] < module.TOLERANCES["denoiser"] < module.TOLERANCES["losses"] < module.RTOL


def test_a_moved_or_missing_fingerprint_fails_the_check(committed: Path, healthy: Any, data: Path) -> None:
    from repro.cells import experiment_digest

    table = load_table("edm/table2")
    cells = table.select(["f"], ["cifar10-cond-vp"])

    def run(**content: Any) -> Any:
        (committed / "fingerprints.json").write_text(json.dumps({"cells": content}))
        return check_fingerprints(table, cells, data, lambda done, total, name: None)

    name, digest = cells[0].name, experiment_digest(cell(F_VP))
    report = run(**{name: {"experiment": digest, "values": healthy(F_VP)}})
    assert (report.exit_code, report.lines[0].verdict, report.lines[0].text) == (0, "holds", "unmoved")
    report = run(**{name: {"experiment": "0" * 64, "values": {**healthy(F_VP), "init": 1.0}}})
    assert (report.exit_code, report.lines[0].verdict) == (1, "outside")
    assert report.lines[0].text.startswith("the resolved configuration is another one; init is ")
    report = run()
    assert (report.exit_code, report.lines[0].verdict) == (3, "skipped")


@pytest.mark.slow
@pytest.mark.parametrize("name", table_names())
def test_every_cell_has_its_fingerprint(name: str, data: Path) -> None:
    table = load_table(name)
    report = check_fingerprints(table, table.computable, data, lambda done, total, name: None)
    assert len(report.lines) == len(table.computable) > 0
    assert [f"{line.cell}: {line.text}" for line in report.lines if line.verdict != "holds"] == []
    assert report.exit_code == 0

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mutants import F_VE, F_VP, FAULTS, Fault
from record_factory import resolved

from repro.cells import Resolved, experiment_digest, resolve
from repro.results import fingerprint as module
from repro.results.check import check_fingerprints
from repro.results.fingerprint import Shared, differences, fingerprint
from repro.results.references import load_fingerprints
from repro.tables import Cell, load_table, table_names

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
    table = load_table("edm/table2")
    cells = table.select(["f"], ["cifar10-cond-vp"])

    def run(**content: Any) -> Any:
        (committed / "fingerprints.json").write_text(json.dumps({"cells": content}))
        return check_fingerprints(table, cells, data)

    name, digest = cells[0].name, experiment_digest(cell(F_VP))
    report = run(**{name: {"experiment": digest, "values": healthy(F_VP)}})
    assert (report.exit_code, report.lines[0].verdict, report.lines[0].text) == (0, "holds", "unmoved")
    report = run(**{name: {"experiment": "0" * 64, "values": {**healthy(F_VP), "init": 1.0}}})
    assert (report.exit_code, report.lines[0].verdict) == (1, "outside")
    assert report.lines[0].text.startswith("the resolved configuration is another one; init is ")
    report = run()
    assert (report.exit_code, report.lines[0].verdict) == (3, "skipped")


PLACE = {"schedule", "data", "images", "losses", "grad_norms", "applied_norms", "update", "ema_update"} | {
    "milestones", "pixels", "pixel_mean", "pixel_sd",
}  # fmt: skip
"""Numbers that follow from where in its training a cell looks."""


def is_nightly(one: Cell) -> bool:
    """Whether `tox` alone computes a cell: half a minute each (U-DiT's Table 6), or one more point of a figure's curve,
    of which two are computed here."""
    plot = load_table(one.table).plot
    if plot is None:
        return one.table == "udit/table6"
    curve = [row for row, name in plot.curves.items() if name == plot.curves[one.row]]
    return one.row not in curve[:2]


class Shares(NamedTuple):
    """Who computes what. computed: table -> cells that its test computes, of any table; alike: cells of one
    configuration at mini; near: cells that differ in the milestone alone; nightly: what no test computes."""

    computed: dict[str, list[Cell]]
    alike: list[tuple[Cell, Cell]]
    near: list[tuple[Cell, Cell]]
    nightly: list[Cell]


@cache
def shares() -> Shares:
    """Every configuration at mini is computed once, by the test of the first table that has its training run."""
    found = Shares({name: [] for name in table_names()}, [], [], [])
    first: dict[str, Cell] = {}
    looks: dict[str, Cell] = {}
    owners: dict[str, str] = {}
    for name in table_names():
        for one in load_table(name).computable:
            here = resolve(one, "mini")
            evaluation = {**here.config["args"]["evaluation"]["args"], "selection": None}
            look = json.dumps([here.trajectory_hash, evaluation], sort_keys=True)
            configuration = experiment_digest(here)
            if configuration in first:
                found.alike.append((first[configuration], one))
            elif look in looks:
                found.near.append((looks[look], one))
            elif is_nightly(one):
                found.nightly.append(one)
                continue
            else:
                found.computed[owners.setdefault(here.trajectory_hash, name)].append(one)
                looks[look] = one
            first.setdefault(configuration, one)
    return found


def committed_of(one: Cell) -> dict[str, Any]:
    found = load_fingerprints(one.table)[one.name]
    assert found["experiment"] == experiment_digest(resolve(one, "mini"))
    values: dict[str, Any] = found["values"]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", table_names())
def test_every_configuration_has_its_fingerprint(name: str, data: Path) -> None:
    shared: Shared = {}
    for table in table_names():
        cells = [one for one in shares().computed[name] if one.table == table]
        if cells:
            report = check_fingerprints(load_table(table), cells, data, shared)
            assert [f"{line.cell}: {line.text}" for line in report.lines if line.verdict != "holds"] == []
            assert len(report.lines) == len(cells) and report.exit_code == 0


def test_every_cell_has_a_fingerprint_and_equal_cells_have_equal_ones() -> None:
    """Cells that differ in the milestone alone (U-DiT's Table 5) are computed nightly, and compared in part here."""
    everything = {one.name for name in table_names() for one in load_table(name).computable}
    assert {name for table in table_names() for name in load_fingerprints(table)} == everything
    counted = [one.name for cells in (*shares().computed.values(), shares().nightly) for one in cells]
    others = [one.name for _, one in (*shares().alike, *shares().near)]
    assert sorted([*counted, *others]) == sorted(everything)
    assert all(committed_of(one) for one in shares().nightly)
    for one, other in shares().alike:
        assert differences(committed_of(other), committed_of(one)) == [], other.name
    for one, other in shares().near:
        here, there = committed_of(other), committed_of(one)
        assert {key for key in here if differences({key: here[key]}, {key: there[key]})} <= PLACE, other.name
    assert {one.table for _, one in shares().near} == {"udit/table5"}

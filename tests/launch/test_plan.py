"""The plan: the smallest set of runs, less what is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import CELL, SIBLING, TINY, compute, data_dir, folders, plan

from repro.cells import resolve
from repro.data.stream import Dataset
from repro.errors import MissingPrerequisite, UsageError
from repro.launch.plan import Folders, Request, Task, check_prerequisites, make_plan
from repro.launch.work import Worker
from repro.metrics import feature_protocol
from repro.results.records import read_record
from repro.tables import find_cell


def test_one_job_a_trajectory_and_one_task_an_evaluation(tmp_path: Path) -> None:
    made = plan(tmp_path, cells=[CELL, SIBLING], seeds=[0, 1])
    assert len(made.jobs) == 4 and made.missing == 4 and made.done == 0 and not made.problems
    assert len({job.trajectory_hash for job in made.jobs}) == 4
    assert [job.title for job in made.jobs][:2] == ["f/cifar10-cond-vp seed 0", "f/cifar10-cond-vp seed 1"]


def test_milestones_and_ranges_are_tasks(tmp_path: Path) -> None:
    bindings = [*TINY, "BestSnapshot.interval_nimg = 80_000_000", "Scale.intervals = 800_000", "Scale.ranges = 1"]
    made = plan(tmp_path, bindings)
    assert {(task.milestone, task.range) for task in made.jobs[0].tasks} == {
        (milestone, k) for milestone in (100, 200, 250) for k in (0, 1, 2)
    }


def test_equal_trajectories_share_a_job(tmp_path: Path) -> None:
    made = plan(tmp_path, cells=[CELL, CELL])
    assert len(made.jobs) == 1 and made.missing == 1 and len(made.jobs[0].wanted) == 2


def test_cells_that_differ_in_sampling_share_a_trajectory() -> None:
    cell = find_cell(CELL)
    plain = resolve(cell, "ci", TINY)
    other = resolve(cell, "ci", [*TINY, "edm_sampler.rho = 6"])
    assert plain.trajectory_hash == other.trajectory_hash and plain.evaluation_hash != other.evaluation_hash


def test_done_records_are_skipped(tmp_path: Path) -> None:
    compute(tmp_path)
    again = plan(tmp_path, cells=[CELL, SIBLING])
    assert again.done == 1 and [job.title for job in again.jobs] == ["e/cifar10-cond-vp seed 0"]
    assert not plan(tmp_path).jobs


def test_records_of_another_folder_count(tmp_path: Path) -> None:
    compute(tmp_path / "theirs")
    made = make_plan([find_cell(CELL)], "ci", TINY, [0], [tmp_path / "mine", tmp_path / "theirs"])
    assert not made.jobs and made.done == 1
    job = plan(tmp_path / "mine").jobs[0]
    where = Folders(tmp_path / "mine", (tmp_path / "theirs",), data_dir(), None)
    assert Worker(where).run(job) is None
    assert not list((tmp_path / "mine").rglob("record.json")), "the worker too sees that it is done"


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    compute(tmp_path)
    record = next(tmp_path.rglob("record.json"))
    before = read_record(record)
    record.write_bytes(record.read_bytes()[:-30])
    made = plan(tmp_path)
    assert len(made.jobs) == 1 and len(made.problems) == 1 and str(record) in made.problems[0]
    assert Worker(folders(tmp_path)).run(made.jobs[0]) is None
    assert read_record(record).metrics == before.metrics
    assert not plan(tmp_path).jobs


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    compute(tmp_path)
    record = read_record(next(tmp_path.rglob("record.json")))
    resolved = resolve(find_cell(CELL), "ci", TINY)
    assert (record.cell, record.scale, record.seed) == (CELL, "ci", 0)
    assert (record.trajectory_hash, record.evaluation_hash) == (resolved.trajectory_hash, resolved.evaluation_hash)
    assert (record.milestone_nimg, record.nimg, record.range, record.num_samples) == (250, 256, 0, 20)
    assert record.threads == 1 and record.world_size == 1 and all(m.n == 20 for m in record.metrics.values())


def test_a_configuration_that_changed_after_planning_is_noticed(tmp_path: Path) -> None:
    job = plan(tmp_path).jobs[0]
    request = Request(CELL, "ci", (*TINY, "Trajectory.loss_scale = 2.0"), 0)
    changed = type(job)(job.trajectory_hash, (request,), (Task(request, "", 250, 0),))
    with pytest.raises(UsageError, match="the configuration or the package changed in between"):
        Worker(folders(tmp_path)).run(changed)


def test_snapshots_of_another_data_manifest_are_not_scored(tmp_path: Path) -> None:
    compute(tmp_path)
    next(tmp_path.rglob("record.json")).unlink()
    manifest = json.loads(next(tmp_path.glob("*/manifest.json")).read_bytes())["data_manifest_sha256"]
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes().replace(manifest.encode(), b"0" * 64))
    with pytest.raises(UsageError, match="another data manifest"):
        Worker(folders(tmp_path)).run(plan(tmp_path).jobs[0])


def test_what_full_scale_needs_is_named(tmp_path: Path) -> None:
    where = Folders(tmp_path, (), tmp_path / "data", tmp_path / "weights")
    with pytest.raises(MissingPrerequisite) as caught:
        check_prerequisites([find_cell(CELL)], "full", [], where, train=False)
    assert caught.value.exit_code == 3
    assert "cifar10-32x32" in str(caught.value) and str(tmp_path / "weights") in str(caught.value)


def test_a_starred_cell_is_trained_only_when_asked(tmp_path: Path) -> None:
    starred = next(
        cell for cell in (find_cell(f"edm/table2/a/cifar10-uncond-{k}") for k in ("vp", "ve")) if cell.starred
    )
    where = Folders(tmp_path, (), tmp_path / "data", tmp_path / "weights")
    for train, said in ((False, True), (True, False)):
        with pytest.raises(MissingPrerequisite) as caught:
            check_prerequisites([starred], "full", [], where, train)
        assert ("published weights" in str(caught.value)) == said
    check_prerequisites([starred], "ci", [], where, train=False)


def test_weights_are_fetched_only_where_nothing_else_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(feature_protocol, "download", lambda file, folder: fetched.append(file.title))
    where = Folders(tmp_path, (), tmp_path / "data", tmp_path / "weights")
    said: list[str] = []
    with pytest.raises(MissingPrerequisite, match="reference statistics not found"):
        check_prerequisites([find_cell(CELL)], "full", [], where, False, said.append)
    assert fetched == [] and said == []
    monkeypatch.setattr(Dataset, "missing", lambda self, folder: [])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "cifar10-32x32.npz").write_bytes(b"")
    check_prerequisites([find_cell(CELL)], "full", [], where, False, said.append)
    assert fetched == ["Inception weights"] and "fetching Inception weights from" in said[0]

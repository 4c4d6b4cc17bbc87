"""Candidates scored by previews, of which the best alone is evaluated (the selection of U-ViT and ScaleLong)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import data_dir, scratch

from repro.cells import resolve
from repro.data.contexts import class_contexts
from repro.errors import MissingPrerequisite, UsageError
from repro.launch.plan import CHOSEN, Folders, Plan, check_prerequisites, make_plan, place_of
from repro.launch.work import Worker
from repro.results.collect import collect
from repro.results.records import read_all
from repro.selection import BestSnapshot, choose_candidate
from repro.tables import find_cell, load_table

CELL = "scalelong/table1/ls/cifar10-uvit-s2"
TEXT = "scalelong/table1/cs/coco-uvit-s2"
TINY = (
    "Scale.images = 400_000",
    "Scale.intervals = 128_000",
    "Scale.halflives = 100_000",
    "Scale.samples = 1_000",
    "Scale.steps = [(1, 1), (50, 3), (1000, 4)]",
)
"""160 images in ten steps, candidates at 50, 100, 150 and the end; 10 images a preview, 50 at last."""


def folders(runs: Path) -> Folders:
    data_dir()
    return Folders(runs, (), scratch() / "data", None)


def plan(runs: Path, cell: str = CELL, bindings: Sequence[str] = TINY) -> Plan:
    return make_plan([find_cell(cell)], "ci", bindings, [0], [runs])


def test_the_best_candidate_is_chosen() -> None:
    rule = BestSnapshot(100, 40, ranges=1)
    assert rule.milestones() == [40, 80, 100]
    assert choose_candidate(rule, {40: 3.0, 80: 2.0, 100: 2.0}) == 80
    assert choose_candidate(rule, {40: 3.0, 80: 2.0}) is None
    assert choose_candidate(rule, {40: math.nan, 80: math.inf, 100: 9.0}) == 100


def test_previews_come_first_and_one_evaluation_follows(tmp_path: Path) -> None:
    made = plan(tmp_path)
    (job,) = made.jobs
    assert [task.milestone for task in job.tasks] == [50, 100, 150, 160, CHOSEN]
    assert [task.preview for task in job.tasks] == [True] * 4 + [False]
    assert len({task.evaluation_hash for task in job.tasks}) == 2 and place_of([tmp_path], job.tasks[-1]) is None
    assert Worker(folders(tmp_path)).run(job) is None
    assert not plan(tmp_path).jobs and plan(tmp_path).done == 5
    records, problems = read_all([tmp_path])
    assert not problems and sorted(r.num_samples for r in records) == [10, 10, 10, 10, 50]
    final = next(r for r in records if r.num_samples == 50)
    scores = {r.milestone_nimg: r.metrics["digits FD"].value for r in records if r.num_samples == 10}
    assert final.milestone_nimg == min(scores, key=lambda at: scores[at]) == place_of([tmp_path], job.tasks[-1])
    assert (final.nfe, {r.nfe for r in records if r is not final}) == (4, {3})
    (result,) = collect(load_table("scalelong/table1"), "ci", [tmp_path], [find_cell(CELL)], TINY).cells
    (replicate,) = result.replicates
    assert replicate.value == final.metrics["digits FD"].value and replicate.candidates == 4
    assert dict(replicate.curve) == scores and replicate.milestone_nimg == final.milestone_nimg

    preview = resolve(find_cell(CELL), "ci", TINY).preview()
    assert preview is not None
    # Without one of the previews nothing is chosen, and the cell has no value.
    folder = tmp_path / preview.run / "eval" / preview.evaluation_hash[:16] / "100" / "range0"
    (folder / "record.json").unlink()
    (result,) = collect(load_table("scalelong/table1"), "ci", [tmp_path], [find_cell(CELL)], TINY).cells
    assert not result.replicates and "3 of 4 previews" in result.notes[0]
    again = plan(tmp_path)
    assert [task.milestone for task in again.jobs[0].tasks] == [100, CHOSEN]


def test_texts_condition_at_mini_by_stand_ins(tmp_path: Path) -> None:
    shorter = ("Scale.images = 4_000_000", "Scale.intervals = 200_000", *TINY[2:])
    (job,) = plan(tmp_path, TEXT, shorter).jobs
    assert Worker(folders(tmp_path)).run(job) is None
    assert plan(tmp_path, TEXT, shorter).done == 2
    records, _ = read_all([tmp_path])
    assert {len(record.prompts_manifest_sha256) for record in records} == {64}
    stream = resolve(find_cell(TEXT), "ci", TINY).dataset().open(scratch() / "data", 0)
    labels = stream.all_labels()[stream.indices(5, 6) % 3594].numpy()
    assert (stream.contexts(5, 6).numpy() == class_contexts(labels, 77, 48)).all()
    assert (stream.contexts_of([3, 13])[0] == stream.contexts_of([3, 13])[1]).all()


def test_captions_to_generate_from_are_asked_for_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="coco-val2014-256-coco: .*coco-train2014-256-coco: "):
        check_prerequisites([find_cell(TEXT)], "full", (), Folders(tmp_path, (), tmp_path, None), False)


def test_a_text_conditional_cell_without_prompts_is_refused(tmp_path: Path) -> None:
    (job,) = make_plan([find_cell(TEXT)], "ci", [*TINY, "Evaluation.prompts = None"], [0], [tmp_path]).jobs
    with pytest.raises(UsageError, match="Evaluation.prompts is not set"):
        Worker(folders(tmp_path)).run(job)


@pytest.mark.parametrize(
    "binding, message",
    [
        ("ConstantScaling.kappa = 1.5", "ConstantScaling.kappa must be above 0 and at most 1, not 1.5"),
        ("UViT.context_tokens = 3", r"network takes texts of \(3, 48\) tokens and width, the data have \(77, 48\)"),
        ("Evaluation.selection = @FinalSnapshot", "Evaluation.selection must be a BestSnapshot"),
        ("UViT.long_skips = False", "UViT has no long skips here"),
    ],
)
def test_what_cannot_be_built_says_why(binding: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        (job,) = make_plan([find_cell(TEXT)], "ci", [*TINY, binding], [0], [tmp_path]).jobs
        Worker(folders(tmp_path)).run(job)

"""What runs of a SLURM job leave behind, and when a job may not be started again."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import fake_slurm
import pytest
from helpers import CELL, TINY, data_dir, plan

from repro.errors import UsageError
from repro.launch import attempts, slurm_end
from repro.launch.attempts import SAME_STEP, Attempt, Kind, poison
from repro.launch.payload import payload
from repro.launch.plan import Folders
from repro.launch.slurm_worker import Asked, Call
from repro.launch.submissions import Array, Submission, create, job_from_plain, job_to_plain, with_texts

FACTS = {"cells": [], "cluster": {"requeue": "always"}}


def run(restart: int, images: int, kind: Kind | None, message: str = "") -> Attempt:
    ended = {"kind": kind, "message": message, "position": [images, 0, 0]} if kind else None
    return Attempt(restart, {"position": [images, 0, 0]}, ended)


def test_the_same_failure_twice_at_the_same_step_is_poison() -> None:
    first = run(0, 800, "failed", "RuntimeError: CUDA error 700 at 0x7f01")
    assert poison([first]) == ""
    assert "the same failure twice at 800 images" in poison([first, run(1, 800, "failed", first.message)])
    assert (
        poison([first, run(1, 800, "failed", "RuntimeError: CUDA error 701 at 0xab")]) != ""
    )  # the same, other digits
    assert poison([first, run(1, 800, "failed", "the disk is full")]) == ""
    assert poison([first, run(1, 1600, "failed", first.message)]) == ""  # it had got further
    alternating = [first, run(1, 800, "failed", "the disk is full"), run(2, 800, "failed", first.message)]
    assert poison(alternating) != ""


def test_runs_that_get_no_further_end_whatever_the_reason() -> None:
    lost = [run(n, 800, None) for n in range(SAME_STEP)]
    assert poison(lost[:-1]) == "" and "5 runs got no further than 800 images" in poison(lost)
    assert poison([run(n, 800 * n, None) for n in range(20)]) == ""
    assert poison([run(n, 800 + n, "stopped") for n in range(20)]) == ""
    assert "stopped" in poison([run(n, 800, "stopped") for n in range(SAME_STEP)])
    assert poison([]) == "" and poison([run(0, 800, "done")]) == ""


@pytest.fixture
def submission(tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """One training on the pretended SLURM, as job 100, seen from its own shell."""
    made = create(tmp_path / "runs", FACTS, [Array("train0", "train", tuple(plan(tmp_path / "runs").jobs))])
    made.accept("train0", "100")
    fake_slurm.write(fake, {"100": {"state": "RUNNING", "reason": "", "node": "n1", "comment": ""}})
    for name, value in (("SLURM_JOB_ID", "100"), ("SLURM_RESTART_COUNT", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm_end, "END_SECONDS", 0.0)
    return made


def ended(submission: Submission, code: int) -> int:
    return slurm_end.main([str(code), str(submission.folder), "train0"])


def test_a_killed_process_is_noted_and_queued_again_once(
    submission: Submission, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = next(submission.members())
    attempts.begin(member, (0, 0, 0))
    assert ended(submission, 137) == 137
    last = attempts.history(member)[-1]
    assert last.kind == "killed" and last.message == "its process died (signal 9)"
    assert fake_slurm.read(fake)["100"]["state"] == "PENDING"
    fake_slurm.change(fake, "100", state="RUNNING")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert ended(submission, 137) == 137  # killed before it could begin: noted all the same
    assert len(attempts.history(member)) == 2 and poison(attempts.history(member)) != ""
    assert fake_slurm.read(fake)["100"]["state"] == "RUNNING"  # not queued again


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING"])
def test_what_slurm_ends_does_not_come_back(submission: Submission, fake: Path, state: str) -> None:
    fake_slurm.change(fake, "100", state=state)
    assert ended(submission, 143) == 143
    assert fake_slurm.read(fake)["100"]["state"] == state


def test_what_was_cancelled_or_said_how_it_ended_stays(submission: Submission, fake: Path) -> None:
    member = next(submission.members())
    attempts.begin(member, (0, 0, 0))
    attempts.end(member, "failed", (0, 0, 0), "said")
    assert ended(submission, 1) == 1 and attempts.history(member)[-1].message == "said"
    assert ended(submission, 0) == 0
    submission.note_cancelled([member.name])
    assert ended(submission, 1) == 1 and fake_slurm.read(fake)["100"]["state"] == "RUNNING"


def test_memory_and_other_processes_are_named(submission: Submission) -> None:
    member = next(submission.members())
    log = member.folder / "train0" / "100" / "100_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Step 100.0 exceeded memory limit (900 > 300), being killed\n")
    assert "out of memory (raise Cluster.mem_gb)" in slurm_end.reason(member, 137, 0)
    attempts.end_of_other_rank(member, 3, "CUDA error")
    assert slurm_end.reason(member, 1, 0) == "process 3: CUDA error"


def job_text(submission: Submission, tmp_path: Path) -> str:
    member = next(submission.members())
    texts = {request: request.resolve().text for request in member.job.wanted}
    told = dataclasses.replace(member, job=with_texts(member.job, texts))
    return payload(told, Folders(tmp_path / "runs", (), data_dir(), None), "always")


def run_here(text: str) -> str:
    from repro.launch.slurm_job import run as run_job

    return run_job(json.loads(text), Asked())


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("repro.launch.slurm_job.KILL_SECONDS", 0.0)


def test_a_job_does_what_it_was_told(submission: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    assert run_here(job_text(submission, tmp_path)) == "train0-0"
    member = next(submission.members())
    assert attempts.history(member)[-1].kind == "done" and attempts.history(member)[-1].position[0] >= 250
    assert list((tmp_path / "runs" / member.run / "ema").glob("*.safetensors"))


@pytest.mark.parametrize(
    "old, new, words, kind",
    [
        ('"sources": "', '"sources": "0', "was submitted with repro .*, sources 0", "refused"),
        ('"version": "', '"version": "9.', "was submitted with repro 9.", "refused"),
        ('"trajectory": "', '"trajectory": "0', "resolves to .* here, was submitted as 0", "refused"),
        ("Scale.batch", "Scale.bacth", "no parameter 'bacth'; did you mean 'batch'", "failed"),
        ("Scale.images = 800000", "Scale.images = 700000", "resolves to .* here, was submitted as", "refused"),
    ],
)
def test_another_package_or_configuration_is_refused(
    submission: Submission,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    words: str,
    kind: str,
) -> None:
    alone(monkeypatch)
    text = job_text(submission, tmp_path)
    assert old in text
    with pytest.raises(Exception, match=words):
        run_here(text.replace(old, new))
    assert attempts.history(next(submission.members()))[-1].kind == kind


def test_a_full_disk_queues_the_job_again_once_and_leaves_what_was_complete(
    submission: Submission, tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch)
    text = job_text(submission, tmp_path)

    def full(descriptor: int) -> None:
        if "/ema/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("repro.files.os.fsync", full)
    member = next(submission.members())
    for restart, state in (("0", "PENDING"), ("1", "RUNNING")):
        fake_slurm.change(fake, "100", state="RUNNING")
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        with pytest.raises(UsageError, match="cannot write .*: the disk is full"):
            run_here(text)
        assert fake_slurm.read(fake)["100"]["state"] == state  # queued again after the first failure only
    assert [run.kind for run in attempts.history(member)] == ["failed", "failed"]
    assert "the disk is full" in poison(attempts.history(member))
    monkeypatch.undo()
    run_folder = tmp_path / "runs" / member.run
    assert (run_folder / "manifest.json").exists() and not list(run_folder.rglob("*.safetensors"))


def test_jobs_survive_writing_down(tmp_path: Path) -> None:
    job = plan(tmp_path, TINY, [CELL], [0, 1]).jobs[0]
    assert job_from_plain(job_to_plain(job)) == job
    assert isinstance(Call("x").text, str) and vars(Call("x")) == {"text": "x"}

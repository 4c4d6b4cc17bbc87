"""Whole processes: killed, interrupted, started twice. All through the command line, as a user does it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import CELL, LONG, SIBLING, TINY, command, compute, data_dir, finish, snapshot_bytes, start

from repro.results.records import read_record

OFTEN = (*LONG, "Execution.checkpoint_seconds = 0.2")


def wait_for(condition: object, process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Until `condition()` holds; an error if the process ends before, or time does."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def checkpoints(runs: Path) -> set[str]:
    return {path.name for path in runs.glob("*/checkpoint-*.pt")}


def children(pid: int) -> list[int]:
    """Living processes whose group is led by `pid`, but for itself."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != pid:
            try:
                state, _, group = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            except OSError:
                continue
            if int(group) == pid and state not in "ZX":
                found.append(int(entry.name))
    return found


def logged(runs: Path) -> list[int]:
    """Images seen, as the log of the only trajectory has them."""
    lines = [json.loads(line) for line in next(runs.glob("*/log.jsonl")).read_text().splitlines()]
    return [line["nimg"] for line in lines if "nimg" in line]


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while children(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not children(pid)


@pytest.mark.slow
def test_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path) -> None:
    """kill -9 of the whole group: once before the first checkpoint, then at a random moment of training."""
    compute(tmp_path / "whole", LONG)
    chance = random.Random(0)
    words = command("run", tmp_path / "hit", OFTEN)
    for attempt in range(2):
        before = checkpoints(tmp_path / "hit")
        process = start(words, tmp_path)
        if attempt:
            wait_for(lambda seen=before: checkpoints(tmp_path / "hit") - seen, process)
            time.sleep(chance.uniform(0, 0.3))
        else:
            wait_for(lambda: list((tmp_path / "hit").glob("*/manifest.json")), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert gone(process.pid, 10)
    assert not list((tmp_path / "hit").rglob("record.json")), "every kill must come before the end"
    code, _, err = finish(words, tmp_path)
    assert code == 0, err
    assert len(snapshot_bytes(tmp_path / "hit")) == 1
    assert snapshot_bytes(tmp_path / "hit") == snapshot_bytes(tmp_path / "whole")
    records = [read_record(next((tmp_path / name).rglob("record.json"))) for name in ("whole", "hit")]
    assert records[0].metrics == records[1].metrics
    assert not list((tmp_path / "hit").rglob(".checkpoint*.tmp"))


@pytest.mark.slow
def test_ctrl_c_saves_and_the_next_run_continues(tmp_path: Path) -> None:
    words = command("run", tmp_path, LONG)
    process = start(words, tmp_path)
    wait_for(lambda: list(tmp_path.glob("*/log.jsonl")), process)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert "interrupted; the same command continues" in err and "Traceback" not in err
    assert gone(process.pid, 1), "no worker is left behind"
    saved = checkpoints(tmp_path)
    assert len(saved) == 1, "its state was saved"
    reached = int(next(iter(saved)).split("-")[1])
    code, _, err = finish(words, tmp_path)
    assert code == 0, err
    seen = logged(tmp_path)
    assert seen[-1] > reached and seen == sorted(seen), "no image is trained on twice"


def test_ctrl_c_at_once(tmp_path: Path) -> None:
    """While the workers start: no traceback from any process."""
    process = start(command("run", tmp_path / "runs", TINY), tmp_path)
    wait_for(lambda: children(process.pid), process)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and gone(process.pid, 5)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = start(command("run", tmp_path, LONG), tmp_path)
    wait_for(lambda: list(tmp_path.glob("*/log.jsonl")), process)
    assert children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(process.pid, 20)
    assert checkpoints(tmp_path), "and the state was saved"


def test_a_killed_worker_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    gin = [word for binding in LONG for word in ("--gin", binding)]
    words = ["reproduce", "edm/table2", "--rows", "e", "f", "--columns", "cifar10-cond-vp", "--scale", "ci", *gin]
    folders = ["--runs", str(tmp_path), "--data", str(data_dir()), "--jobs", "2"]
    process = start([*words, *folders], tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("*/log.jsonl"))) == 2, process)
    victim = json.loads(next(tmp_path.glob("*/claims/000001.json")).read_bytes())["pid"]
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "its process died (signal 9); the same command continues from its checkpoint" in err
    assert len(list(tmp_path.rglob("record.json"))) == 1, err


def test_two_processes_on_one_cell(tmp_path: Path) -> None:
    """One computes, the other waits; one training, one record, both end well."""
    words = command("run", tmp_path, LONG)
    both = [start(words, tmp_path) for _ in range(2)]
    outcomes = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    assert len(list(tmp_path.rglob("record.json"))) == 1
    seen = logged(tmp_path)
    assert len(seen) == len(set(seen)) and seen == sorted(seen), "one training"
    waits = [err.count("waits for process") for _, err in outcomes]
    assert min(waits) == 0, "at most one waits; none if the other was done before it had started"


def test_again_computes_nothing_and_says_so(tmp_path: Path) -> None:
    compute(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = finish(command("run", tmp_path), tmp_path)
    assert code == 0 and err == "nothing to compute: the record is there\n" and out.startswith(CELL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert SIBLING not in out

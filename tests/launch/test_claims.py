"""Claims: never two owners, and none that is dead."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from helpers import environment

from repro.files import create_exclusive
from repro.launch import claims
from repro.launch.claims import Claim, Owner, acquire, holder, how_to_release

PROCESSES = 8
ROUNDS = 25


def dead_claims(folders: list[Path]) -> None:
    """Claims of a process that has ended without releasing them."""
    code = (
        "import sys, pathlib; from repro.launch.claims import acquire; [acquire(pathlib.Path(f)) for f in sys.argv[1:]]"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, folders)], check=True, env=environment())


def forge(folder: Path, **changes: Any) -> None:
    """A claim of this process with some fields changed."""
    owner = dataclasses.replace(claims._me(), **changes)
    (folder / "claims").mkdir(parents=True)
    assert create_exclusive(folder / "claims" / "000001.json", json.dumps(dataclasses.asdict(owner)).encode())


def test_one_owner_until_it_releases(tmp_path: Path) -> None:
    first = acquire(tmp_path)
    assert isinstance(first, Claim)
    second = acquire(tmp_path)
    assert isinstance(second, Owner) and second.pid == os.getpid() and f"process {os.getpid()} on" in str(second)
    assert holder(tmp_path) == second
    first.release()
    first.release()
    assert holder(tmp_path) is None
    with acquire(tmp_path) as third:
        assert isinstance(third, Claim) and third.file.name == "000002.json"
    assert holder(tmp_path) is None


def test_an_error_releases(tmp_path: Path) -> None:
    with pytest.raises(KeyError), acquire(tmp_path):
        raise KeyError
    assert isinstance(acquire(tmp_path), Claim)


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead_claims([tmp_path])
    assert holder(tmp_path) is None
    taken = acquire(tmp_path)
    assert isinstance(taken, Claim) and taken.file.name == "000002.json"


@pytest.mark.parametrize(
    "change",
    [
        {"started": "1"},  # the number of a process is used again by another
        {"boot": "before the last reboot"},
        {"boot": "before the last reboot", "namespace": "of a container that is gone"},
    ],
)
def test_dead_owners_of_living_numbers(tmp_path: Path, change: dict[str, Any]) -> None:
    forge(tmp_path, **change)
    assert isinstance(acquire(tmp_path), Claim)


@pytest.mark.parametrize("change", [{"host": "another-host"}, {"namespace": "another container", "pid": 2**22 + 1}])
def test_owners_that_cannot_be_looked_at_are_respected(tmp_path: Path, change: dict[str, Any]) -> None:
    forge(tmp_path, **change)
    assert isinstance(acquire(tmp_path), Owner)
    (tmp_path / "claims" / "000001.released").touch()
    assert str(tmp_path / "claims" / "000001.released") in how_to_release(tmp_path)
    assert isinstance(acquire(tmp_path), Claim), "what the message tells the user to do helps"


def test_the_owner_of_a_zombie_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert claims._start_time(process.pid) is None
    process.wait()


@pytest.mark.parametrize("content", [b"", b"{", b'{"host": "x"}', b"[]"])
def test_a_file_that_is_no_claim_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "000001.json").write_bytes(content)
    assert isinstance(acquire(tmp_path), Claim)


def race(folders: list[Path], barrier: Any, results: Any) -> None:
    won = []
    for index, folder in enumerate(folders):
        barrier.wait()
        if isinstance(acquire(folder), Claim):
            won.append(index)
    results.put(won)
    barrier.wait()  # nobody may die before the others have tried


@pytest.mark.parametrize("state", ["dead", "new", "released"])
def test_exactly_one_wins_a_race(tmp_path: Path, state: str) -> None:
    folders = [tmp_path / str(index) for index in range(ROUNDS)]
    if state == "dead":
        dead_claims(folders)
    if state == "released":
        for folder in folders:
            claim = acquire(folder)
            assert isinstance(claim, Claim)
            claim.release()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=race, args=(folders, barrier, results)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    won = sorted(index for _ in processes for index in results.get(timeout=60))
    for process in processes:
        process.join()
    assert won == list(range(ROUNDS))
    assert not list(tmp_path.rglob("*.tmp"))


def slurm_owner(monkeypatch: pytest.MonkeyPatch, fake: Path, state: str, restarts: int = 0) -> None:
    """Job 7 of the pretended SLURM in some state."""
    job = {"state": state, "reason": "", "node": "n1", "comment": "", "restarts": restarts}
    fake_slurm.write(fake, {"7": job})


@pytest.mark.parametrize(
    "state, restarts, lives",
    [
        ("RUNNING", 0, True),
        ("COMPLETING", 0, True),
        ("SUSPENDED", 0, True),
        ("RUNNING", 1, False),  # started anew since
        ("PENDING", 1, False),  # waits in the queue again
        ("COMPLETED", 0, False),
        ("NODE_FAIL", 0, False),
    ],
)
def test_slurm_says_whether_the_owner_of_a_claim_lives(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, state: str, restarts: int, lives: bool
) -> None:
    forge(tmp_path / "run", host="elsewhere", slurm_job="7", cluster="fake", since=0.0)
    slurm_owner(monkeypatch, fake, state, restarts)
    assert isinstance(acquire(tmp_path / "run"), Owner if lives else Claim)


def test_a_job_that_slurm_does_not_know_is_dead_and_one_of_another_cluster_unknown(tmp_path: Path, fake: Path) -> None:
    forge(tmp_path / "a", host="elsewhere", slurm_job="8", cluster="fake")
    forge(tmp_path / "b", host="elsewhere", slurm_job="8", cluster="other")
    assert isinstance(acquire(tmp_path / "a"), Claim) and isinstance(acquire(tmp_path / "b"), Owner)


def test_without_slurm_the_owner_on_another_host_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    forge(tmp_path / "run", host="elsewhere", slurm_job="8", since=0.0)
    assert isinstance(acquire(tmp_path / "run"), Owner)


def test_the_same_job_started_again_takes_over_and_the_old_process_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # SLURM need not be asked
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    old = acquire(tmp_path / "run")
    assert isinstance(old, Claim) and old.held
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    new = acquire(tmp_path / "run")
    assert isinstance(new, Claim) and new.held and not old.held

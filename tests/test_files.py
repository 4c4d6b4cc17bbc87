"""Files appear whole or not at all, also on a full disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import compute, environment, make_trainer, snapshot_bytes

from repro import files
from repro.errors import UsageError
from repro.files import append_line, create_exclusive, make_folder, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(number: int) -> Callable[..., Any]:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return raising


def test_a_new_file_replaces_the_old(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", b"old")
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and names(tmp_path) == ["x"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    write_atomic(tmp_path / "x", b"old")
    monkeypatch.setattr(files.os, where, fail(number))
    with pytest.raises(UsageError) as caught:
        write_atomic(tmp_path / "x", b"new")
    assert caught.value.exit_code == 2 and str(tmp_path / "x") in str(caught.value)
    assert ("the disk is full" in str(caught.value)) == (number != errno.EIO)
    assert (tmp_path / "x").read_bytes() == b"old" and names(tmp_path) == ["x"]


def test_an_interrupt_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"new")
    assert names(tmp_path) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from repro.errors import UsageError
from repro.files import append_line, create_exclusive, write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
for work in (
    lambda: write_atomic(folder / "old", b"n" * 5000),
    lambda: create_exclusive(folder / "claim", b"n" * 5000),
    lambda: append_line(folder / "log", "n" * 5000),
):
    try:
        work()
    except UsageError as error:
        print(error)
"""


def test_a_real_limit_in_the_middle_of_a_write(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], env=environment(), capture_output=True, text=True, check=True
    )
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        f"cannot write {tmp_path / name}" for name in ("old", "claim", "log")
    ]
    assert (tmp_path / "old").read_bytes() == b"old" and names(tmp_path) == ["log", "old"]
    append_line(tmp_path / "log", "next")  # what the failed write left of its line is gone
    assert (tmp_path / "log").read_text() == "next\n"


def test_a_full_disk_in_training_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(tmp_path / "whole", 80).run()
    trainer = make_trainer(tmp_path / "hit", 80, checkpoint_seconds=0)
    write, left = os.fsync, [3]

    def full_after_three(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full_after_three)
        with pytest.raises(UsageError, match="the disk is full .what was complete before is untouched"):
            trainer.run()
    assert make_trainer(tmp_path / "hit", 80).nimg == 24
    make_trainer(tmp_path / "hit", 80).run()
    assert snapshot_bytes(tmp_path / "hit") == snapshot_bytes(tmp_path / "whole")


def test_a_full_disk_at_the_record_costs_the_record_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repro.results import records

    def full(path: Path, value: Any) -> None:
        raise UsageError(f"cannot write {path}: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(records, "write_json", full)
        with pytest.raises(UsageError, match="record.json"):
            compute(tmp_path)
    before = snapshot_bytes(tmp_path)
    compute(tmp_path)
    assert snapshot_bytes(tmp_path) == before and len(list(tmp_path.rglob("record.json"))) == 1


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"b": 1, "a": [1.5]})
    assert (tmp_path / "x").read_text() == '{\n "a": [\n  1.5\n ],\n "b": 1\n}\n'


def test_exclusive_creation(tmp_path: Path) -> None:
    assert create_exclusive(tmp_path / "x", b"first") and not create_exclusive(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first" and names(tmp_path) == ["x"]


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    for index in range(3):
        append_line(tmp_path / "log", json.dumps({"index": index}))
    assert (tmp_path / "log").read_text() == '{"index": 0}\n{"index": 1}\n{"index": 2}\n'
    with open(tmp_path / "log", "ab") as stream:
        stream.write(b'{"ind')
    append_line(tmp_path / "log", "{}")
    assert (tmp_path / "log").read_text() == '{"index": 0}\n{"index": 1}\n{"index": 2}\n{}\n'


def test_folders_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot create the folder .*Not a directory"):
        make_folder(tmp_path / "file" / "runs")
    with pytest.raises(UsageError, match="File exists"):
        make_folder(tmp_path / "file")
    monkeypatch.setattr(files.os, "access", lambda *args: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(UsageError, match="cannot write in the folder"):
        make_folder(tmp_path / "runs")

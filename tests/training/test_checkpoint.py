"""Checkpoints: whole or passed over, the last two kept, nothing in them is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BATCH, after, compute, folders, make_trainer, plan, snapshot_bytes

from repro.errors import CorruptData, UsageError
from repro.launch.work import Worker
from repro.training import checkpoint
from repro.training.loop import Interrupted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*.pt"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def two_checkpoints(folder: Path) -> None:
    """Interrupt a run at 3 and at 5 steps."""
    for steps in (3, 2):
        with pytest.raises(Interrupted):
            make_trainer(folder, 10 * BATCH, stop=after(steps)).run()


def notes(folder: Path) -> list[str]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["note"] for entry in entries if "note" in entry]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for nimg in (8, 16, 24, 32):
        checkpoint.save(tmp_path, nimg, {"nimg": nimg, "weights": torch.full((3,), float(nimg))})
    assert [int(name.split("-")[1]) for name in names(tmp_path)] == [24, 32]
    loaded = checkpoint.load(tmp_path)
    assert loaded.state is not None and loaded.state["nimg"] == 32 and not loaded.damaged
    assert torch.equal(loaded.state["weights"], torch.full((3,), 32.0))


def test_nothing_to_load(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) == (None, [])


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit"])
def test_a_damaged_newest_gives_the_one_before(tmp_path: Path, damage: str) -> None:
    for nimg in (8, 16):
        path = checkpoint.save(tmp_path, nimg, {"nimg": nimg})
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-1], "empty": b"", "one bit": content}[damage])
    loaded = checkpoint.load(tmp_path)
    assert loaded.state == {"nimg": 8} and loaded.damaged == [path.name]


def test_damaged_ones_never_push_out_whole_ones(tmp_path: Path) -> None:
    """Both of a far run are damaged; what the new run saves at fewer images must stay."""
    for nimg in (1000, 2000):
        checkpoint.save(tmp_path, nimg, {"nimg": nimg}).write_bytes(b"damaged")
    assert checkpoint.load(tmp_path).state is None
    for nimg in (8, 16, 24):
        checkpoint.save(tmp_path, nimg, {"nimg": nimg})
    assert [int(name.split("-")[1]) for name in names(tmp_path)] == [16, 24]
    assert checkpoint.load(tmp_path) == ({"nimg": 24}, [])


def test_training_goes_on_from_the_one_before_and_says_so(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", 10 * BATCH).run()
    two_checkpoints(tmp_path / "hurt")
    newest = sorted((tmp_path / "hurt").glob("checkpoint-*.pt"))[-1]
    truncate(newest)
    trainer = make_trainer(tmp_path / "hurt", 10 * BATCH)
    assert trainer.nimg == 3 * BATCH
    trainer.run()
    said = notes(tmp_path / "hurt")
    assert said == [f"{newest.name} is damaged and was passed over", f"training continues from {3 * BATCH} images"]
    assert snapshot_bytes(tmp_path / "hurt") == snapshot_bytes(tmp_path / "whole")


def test_all_damaged_starts_anew_and_says_so(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", 10 * BATCH).run()
    two_checkpoints(tmp_path / "hurt")
    for path in (tmp_path / "hurt").glob("checkpoint-*.pt"):
        truncate(path)
    trainer = make_trainer(tmp_path / "hurt", 10 * BATCH)
    assert trainer.nimg == 0
    trainer.run()
    assert len(notes(tmp_path / "hurt")) == 3
    assert notes(tmp_path / "hurt")[-1] == "no whole checkpoint is left: training starts anew"
    assert snapshot_bytes(tmp_path / "hurt") == snapshot_bytes(tmp_path / "whole")


def test_the_display_is_told(tmp_path: Path) -> None:
    """A worker reports the notes of a damaged checkpoint, with the run that they are about."""
    job = plan(tmp_path).jobs[0]
    with pytest.raises(Interrupted):
        Worker(folders(tmp_path), stop=after(4)).run(job)
    for path in tmp_path.glob("*/checkpoint-*.pt"):
        truncate(path)
    events: list[dict[str, Any]] = []
    compute(tmp_path, report=events.append)
    said = [event["note"] for event in events if "note" in event]
    assert len(said) == 2 and "f/cifar10-cond-vp seed 0" in said[0] and "damaged" in said[0]
    assert said[1].endswith("training starts anew")


def test_a_foreign_trajectory_is_refused(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    before = names(tmp_path)
    with pytest.raises(CorruptData, match="another trajectory"):
        make_trainer(tmp_path, 10 * BATCH, identity="another")
    assert names(tmp_path) == before


def test_another_data_manifest_is_refused(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    trainer = make_trainer(tmp_path / "other", 10 * BATCH)
    stream = trainer.stream
    stream.manifest_sha256 = "0" * 64
    with pytest.raises(UsageError, match="another data manifest"):
        make_trainer(tmp_path, 10 * BATCH, stream=stream)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("how", ["torch", "pickle", "text"])
def test_a_foreign_file_is_refused_and_nothing_in_it_is_run(tmp_path: Path, how: str) -> None:
    buffer = io.BytesIO()
    if how == "torch":
        torch.save({"trap": Trap(tmp_path / "sprung")}, buffer)
    elif how == "pickle":
        pickle.dump({"trap": Trap(tmp_path / "sprung")}, buffer)
    else:
        buffer.write(b"not a checkpoint at all")
    content = buffer.getvalue()
    path = tmp_path / f"checkpoint-{8:012d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    with pytest.raises(CorruptData, match="is no checkpoint of repro"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "sprung").exists() and path.exists()


def test_a_whole_file_without_our_fields_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 8, {"epoch": 1})
    with pytest.raises(CorruptData, match="another trajectory or version"):
        make_trainer(tmp_path, 10 * BATCH)


def test_an_unreadable_file_is_no_damage(tmp_path: Path) -> None:
    """An I/O error must not throw a good checkpoint away."""
    path = checkpoint.save(tmp_path, 8, {"nimg": 8})
    path.unlink()
    path.mkdir()  # reading it is an error of the file system
    with pytest.raises(CorruptData, match="cannot be read"):
        checkpoint.load(tmp_path)
    assert path.exists()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ema").mkdir()
    left = [tmp_path / ".checkpoint-8.pt.12-ab.tmp", tmp_path / "ema" / ".x.safetensors.12-ab.tmp"]
    for path in left:
        path.write_bytes(b"part of a file")
    make_trainer(tmp_path, 2 * BATCH)
    assert not any(path.exists() for path in left)

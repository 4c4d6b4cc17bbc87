"""The loop: the same weights bit for bit however often it is stopped, and clear words where it cannot go on."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BATCH, TINY, after, compute, data_dir, folders, make_trainer, plan, snapshot_bytes
from torch import Tensor

from repro.data.stream import ImageStream
from repro.errors import UsageError
from repro.launch.work import Worker
from repro.training import checkpoint
from repro.training.ema import HalfLifeEMA
from repro.training.loop import Interrupted, Trainer
from repro.training.step import NonFiniteLoss

A, B = HalfLifeEMA(100, 0.5), HalfLifeEMA(37, None)


def same(first: Any, second: Any) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def state(folder: Path) -> dict[str, Any]:
    loaded = checkpoint.load(folder)
    assert loaded.state is not None and not loaded.damaged
    return loaded.state


def log(folder: Path) -> list[dict[str, Any]]:
    """Every line must be JSON by the standard, which knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def run_in_pieces(folder: Path, total: int, pieces: list[int], **kwargs: Any) -> None:
    for steps in pieces:
        with pytest.raises(Interrupted):
            make_trainer(folder, total, stop=after(steps), **kwargs).run()
    make_trainer(folder, total, **kwargs).run()


def small_stream() -> ImageStream:
    """20 images: an epoch ends within every third batch."""
    trainer = make_trainer(data_dir().parent / "unused", BATCH)
    full = trainer.stream
    return ImageStream(full.all_images()[:20], full.all_labels()[:20], full.manifest, seed=0)


def test_interrupted_anywhere_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Whatever the steps after which it is stopped: the EMAs on disk, the network and the optimiser, bit for bit."""
    total = 16 * BATCH
    make_trainer(tmp_path / "whole", total, profiles=[A, B], milestones=[50]).run()
    whole = snapshot_bytes(tmp_path / "whole")
    assert len(whole) == 4
    chance = random.Random(0)
    for attempt in ("first", "second", "third"):
        pieces = [chance.randint(1, 5) for _ in range(3)]
        run_in_pieces(tmp_path / attempt, total, pieces, profiles=[A, B], milestones=[50])
        assert snapshot_bytes(tmp_path / attempt) == whole, pieces
        assert same(state(tmp_path / attempt), state(tmp_path / "whole")), pieces


def test_weights_do_move(tmp_path: Path) -> None:
    """What the comparisons above compare is not constant."""
    trainer = make_trainer(tmp_path, 10 * BATCH)
    before = trainer.weights.split(trainer.weights.vector.detach().clone())
    trainer.run()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.weights.parameters, strict=True) if b.ndim > 1)
    other = make_trainer(tmp_path / "other", 10 * BATCH, bindings=["Trajectory.seed = 1"])
    other.run()
    assert (
        snapshot_bytes(tmp_path)["ema/000000.080-halflife100-ramp0.5.safetensors"]
        not in snapshot_bytes(tmp_path / "other").values()
    )


def test_resumed_across_the_end_of_an_epoch(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", 12 * BATCH, stream=small_stream()).run()
    run_in_pieces(
        tmp_path / "pieces", 12 * BATCH, [2, 1, 1, 3], stream=small_stream()
    )  # step 2 holds images 16..23 of 20
    assert same(state(tmp_path / "pieces"), state(tmp_path / "whole"))


def test_killed_between_snapshot_and_checkpoint(tmp_path: Path) -> None:
    """A snapshot newer than the last checkpoint is written again, with the same bytes."""
    make_trainer(tmp_path / "whole", 10 * BATCH, milestones=[40]).run()
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "hit", 10 * BATCH, milestones=[40], stop=after(3)).run()
    lost = make_trainer(tmp_path / "hit", 10 * BATCH, milestones=[40])
    lost.save = lambda: None  # type: ignore[method-assign]
    lost.run()
    assert len(snapshot_bytes(tmp_path / "hit")) == 2 and state(tmp_path / "hit")["nimg"] == 3 * BATCH
    make_trainer(tmp_path / "hit", 10 * BATCH, milestones=[40]).run()
    assert snapshot_bytes(tmp_path / "hit") == snapshot_bytes(tmp_path / "whole")


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_change_rounding_only(tmp_path: Path, micro_batch: int) -> None:
    """Without dropout, whose masks are drawn by each process for what it computes at once."""
    states = []
    for name, size in (("whole", 0), ("parts", micro_batch)):
        trainer = make_trainer(tmp_path / name, 5 * BATCH, bindings=["SongUNet.dropout = 0.0"], micro_batch=size)
        trainer.run()
        states.append(trainer.weights.vector.detach())
    start = make_trainer(tmp_path / "start", BATCH, bindings=["SongUNet.dropout = 0.0"])
    moved = (states[0] - start.weights.vector.detach()).abs().max()
    assert (states[0] - states[1]).abs().max() < 1e-3 * moved
    if micro_batch >= BATCH:
        assert torch.equal(*states)


def test_a_longer_run_continues_a_shorter_one(tmp_path: Path) -> None:
    make_trainer(tmp_path / "long", 16 * BATCH, milestones=[50]).run()
    make_trainer(tmp_path / "grown", 50).run()  # ends at the first step boundary after 50
    grown = make_trainer(tmp_path / "grown", 16 * BATCH, milestones=[50])
    assert grown.nimg == 56
    grown.run()
    assert snapshot_bytes(tmp_path / "grown") == snapshot_bytes(tmp_path / "long")
    assert same(state(tmp_path / "grown"), state(tmp_path / "long"))


def test_two_profiles_at_once_equal_two_runs(tmp_path: Path) -> None:
    make_trainer(tmp_path / "both", 10 * BATCH, profiles=[A, B]).run()
    for name, profile in (("a", A), ("b", B)):
        make_trainer(tmp_path / name, 10 * BATCH, profiles=[profile]).run()
    alone = snapshot_bytes(tmp_path / "a") | snapshot_bytes(tmp_path / "b")
    assert len(set(alone.values())) == 2 and snapshot_bytes(tmp_path / "both") == alone


def test_an_ema_that_was_not_tracked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, 10 * BATCH, profiles=[A], stop=after(2)).run()
    with pytest.raises(UsageError, match="the EMA halflife37 was not tracked from its start and cannot be rebuilt"):
        make_trainer(tmp_path, 10 * BATCH, profiles=[A, B])
    make_trainer(tmp_path, 10 * BATCH, profiles=[A]).run()


def test_an_ema_that_another_cell_tracked_is_tracked_on(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", 10 * BATCH, profiles=[A, B]).run()
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "other", 10 * BATCH, profiles=[A, B], stop=after(3)).run()
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "other", 10 * BATCH, profiles=[B], stop=after(3)).run()
    make_trainer(tmp_path / "other", 10 * BATCH, profiles=[A]).run()
    assert snapshot_bytes(tmp_path / "other") == snapshot_bytes(tmp_path / "whole")


def test_weights_that_were_not_kept_are_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, 10 * BATCH).run()
    with pytest.raises(UsageError, match="training is at 80 images and the weights at 40 were not kept"):
        make_trainer(tmp_path, 10 * BATCH, milestones=[40]).run()


@pytest.mark.parametrize("total", [10 * BATCH, 77])
def test_the_last_snapshot_is_written_again_from_the_checkpoint(tmp_path: Path, total: int) -> None:
    make_trainer(tmp_path, total).run()
    before = snapshot_bytes(tmp_path)
    for path in (tmp_path / "ema").iterdir():
        path.unlink()
    make_trainer(tmp_path, total).run()
    assert len(before) == 1 and snapshot_bytes(tmp_path) == before


class Poisoned:
    """A loss that is not finite from one step on."""

    def __init__(self, loss: Any, step: int, value: float) -> None:
        self.loss, self.left, self.value = loss, step, value

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.left -= 1
        return self.loss(*args, **kwargs) * (1.0 if self.left >= 0 else self.value)


def poison(trainer: Trainer, step: int, value: float) -> Trainer:
    trainer.trajectory.loss = Poisoned(trainer.trajectory.loss, step, value)
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path, value: float) -> None:
    make_trainer(tmp_path / "whole", 10 * BATCH).run()
    with pytest.raises(NonFiniteLoss, match=r"the loss is (nan|inf) at step 4 \(32 images\)") as caught:
        poison(make_trainer(tmp_path / "bad", 10 * BATCH), 4, value).run()
    assert caught.value.exit_code != 0
    assert state(tmp_path / "bad")["nimg"] == 4 * BATCH
    assert "step 4" in log(tmp_path / "bad")[-1]["note"]
    make_trainer(tmp_path / "bad", 10 * BATCH).run()
    assert snapshot_bytes(tmp_path / "bad") == snapshot_bytes(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, 10 * BATCH, stop=after(2)).run()
    trainer = make_trainer(tmp_path, 10 * BATCH)
    with torch.no_grad():
        trainer.weights.vector[0] = math.nan
    with pytest.raises(NonFiniteLoss):
        trainer.run()
    kept = state(tmp_path)
    assert kept["nimg"] == 2 * BATCH and all(bool(t.isfinite().all()) for t in kept["net"].values())


def test_the_log_is_json_lines(tmp_path: Path) -> None:
    run_in_pieces(tmp_path, 10 * BATCH, [3, 4])
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"nimg": 80, "lo')  # a disk that was full
    trainer = make_trainer(tmp_path, 12 * BATCH)
    step = trainer.step
    trainer.step = lambda: step()._replace(grad_norm=math.inf)  # type: ignore[method-assign]
    trainer.run()
    entries = log(tmp_path)
    seen = [entry["nimg"] for entry in entries]  # a slow machine logs in between
    assert {80, 96} <= set(seen) and seen == sorted(seen) and seen[-1] == 96
    assert entries[-1]["grad_norm"] is None and entries[0]["grad_norm"] > 0
    assert {"timestamp", "nimg", "total", "loss", "lr", "img_per_sec"} <= entries[0].keys()


def test_a_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, BATCH)
    trainer.trajectory.batch = 0
    with pytest.raises(UsageError, match="Trajectory.batch must be 1 or more"):
        Trainer(trainer.trajectory, "x", trainer.stream, tmp_path, trainer.tracked, trainer.execution)


def test_a_refused_run_leaves_the_description_alone(tmp_path: Path) -> None:
    """Another EMA is refused; manifest and config still tell of the run that was made."""
    compute(tmp_path)
    folder = next(tmp_path.glob("*/manifest.json")).parent
    before = (folder / "manifest.json").read_bytes(), (folder / "config.gin").read_bytes()
    other = plan(tmp_path, [*TINY, "HalfLifeEMA.rampup_ratio = 0.5"])
    with pytest.raises(UsageError, match="was not tracked"):
        Worker(folders(tmp_path)).run(other.jobs[0])
    assert ((folder / "manifest.json").read_bytes(), (folder / "config.gin").read_bytes()) == before


def test_the_manifest_says_what_is_tracked(tmp_path: Path) -> None:
    compute(tmp_path)
    tracks = json.loads(next(tmp_path.glob("*/manifest.json")).read_bytes())["tracks"]
    assert tracks["milestones_nimg"] == [250]
    assert [settings["class"] for settings in tracks["profiles"].values()] == ["HalfLifeEMA"]

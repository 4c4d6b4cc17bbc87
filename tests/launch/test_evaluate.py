"""Scoring a run: the same bits on any number of ranks, and on with it after any interruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELL, TINY, data_dir

from repro.cells import resolve
from repro.config import build
from repro.data.stream import ImageStream
from repro.diffusion.samplers import count_nfe
from repro.errors import CheckFailed, UsageError
from repro.experiment import Evaluation, Execution
from repro.launch import evaluate
from repro.launch.evaluate import Scoring, block_path
from repro.launch.work import build_trajectory
from repro.metrics.feature_protocol import FeatureProtocol
from repro.metrics.images import open_images
from repro.metrics.references import Reference, save
from repro.sampling import generate
from repro.tables import find_cell
from repro.training.distributed import World

N = 40


class SmallProtocol(FeatureProtocol):
    """A streamed protocol on the digits extractor."""

    primary = "small FD"
    metrics = ("small FD",)
    network = "digits"
    published = "nowhere"
    backends = {"digits": "own/digits"}

    def __init__(self) -> None:
        super().__init__("balanced", "digits", "", "real", "truncate", "digits", N, "", "")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Evaluation, ImageStream]:
    resolved = resolve(find_cell(CELL), "ci", TINY)
    trajectory = build_trajectory(resolved)
    evaluation = dataclasses.replace(build(resolved.evaluation), num_samples=N)
    return trajectory.denoiser.eval(), evaluation, trajectory.data.open(data_dir(), 0)


def scoring(parts: Any, folder: Path, **changes: Any) -> Scoring:
    net, evaluation, stream = parts
    execution = Execution(threads=1, device="cpu", sample_batch=16)
    base = Scoring(net, evaluation, 80, folder, "weights", stream.all_images(), folder, execution)
    return dataclasses.replace(base, **changes)


def streamed(parts: Any, folder: Path, **changes: Any) -> Scoring:
    """A scoring by the streamed protocol, in blocks of 10."""
    stream = parts[2]
    features = evaluate.Extractor("own/digits")(stream.all_images())["features"].astype(np.float64)
    pair = (features.mean(axis=0), np.cov(features, rowvar=False))
    save(Reference("real", "digits", len(features), (8, 8), "digits", "0" * 64, {"features": pair}), folder)
    return scoring(parts, folder, evaluation=dataclasses.replace(parts[1], protocol=SmallProtocol()), **changes)


def test_scores_are_those_of_all_images_at_once(parts: Any, tmp_path: Path) -> None:
    net, evaluation, stream = parts
    found = scoring(parts, tmp_path).run()
    images = generate(net, evaluation.sampler, range(80, 80 + N), labels="balanced", batch=16).images
    assert found is not None and torch.equal(found.images, images)
    assert found.nfe == count_nfe(evaluation.sampler)
    assert found.scores == evaluation.protocol.score(images, stream.all_images())


@pytest.mark.parametrize("make", [scoring, streamed])
def test_any_number_of_ranks_gives_the_same_bits(
    make: Any, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BLOCK", 10)
    alone = make(parts, tmp_path / "1").run()
    assert alone is not None and len(alone.images) == N
    for world in (2, 3, 7):
        folder = tmp_path / str(world)
        for rank in range(1, world):
            assert make(parts, folder, world=World(rank, world)).run() is None
        together = make(parts, folder, world=World(0, world)).run()
        assert together.scores == alone.scores and torch.equal(together.images, alone.images)


def test_an_interrupted_scoring_continues(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK", 10)
    whole = streamed(parts, tmp_path / "whole").run()
    calls: list[int] = []
    original = evaluate.generate

    def counting(net: Any, sampler: Any, seeds: Any, **options: Any) -> Any:
        calls.append(seeds[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(net, sampler, seeds, **options)

    monkeypatch.setattr(evaluate, "generate", counting)
    with pytest.raises(KeyboardInterrupt):
        streamed(parts, tmp_path / "cut").run()
    assert calls == [80, 90, 100]
    partial = streamed(parts, tmp_path / "cut").partial
    block_path(partial, 0).write_bytes(block_path(partial, 0).read_bytes()[:-200])  # and one block damaged
    again = streamed(parts, tmp_path / "cut")
    found = again.run()
    assert calls == [80, 90, 100, 80, 100, 110]
    assert found is not None and whole is not None and found.scores == whole.scores
    again.clean()
    assert not list((tmp_path / "cut").glob("partial-*"))


def test_blocks_of_other_weights_or_seeds_are_not_used(parts: Any, tmp_path: Path) -> None:
    one = scoring(parts, tmp_path)
    assert one.partial == scoring(parts, tmp_path).partial
    assert one.partial != scoring(parts, tmp_path, identity="other weights").partial
    assert one.partial != scoring(parts, tmp_path, first_seed=81).partial


def test_kept_samples_can_be_read_again(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK", 10)
    execution = Execution(threads=1, device="cpu", sample_batch=16, keep_samples=True)
    found = streamed(parts, tmp_path, execution=execution).run()
    images = open_images(tmp_path / evaluate.SAMPLES_FILE)
    assert found is not None and images is not None and images.count == N
    assert torch.equal(torch.cat(list(images.batches(7))), found.images)
    content = (tmp_path / evaluate.SAMPLES_FILE).read_bytes()
    streamed(parts, tmp_path, execution=execution).run()
    assert (tmp_path / evaluate.SAMPLES_FILE).read_bytes() == content


def test_a_rank_that_never_delivers_is_named(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "POLL_SECONDS", 0.0)
    with pytest.raises(CheckFailed, match=r"block-00000016\.npz: rank 1 did not deliver it"):
        scoring(parts, tmp_path, world=World(0, 3), wait_seconds=0.0).run()


def test_another_number_than_the_protocols_is_refused_before_the_work(parts: Any, tmp_path: Path) -> None:
    wrong = dataclasses.replace(parts[1], protocol=SmallProtocol(), num_samples=N + 1)
    with pytest.raises(UsageError, match="SmallProtocol is a protocol of n = 40"):
        scoring(parts, tmp_path, evaluation=wrong)

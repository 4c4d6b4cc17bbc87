"""Sampling: each image depends on its own seed alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELL, TINY
from torch import Tensor

from repro.cells import resolve
from repro.diffusion.rk45 import rk45_sampler
from repro.diffusion.samplers import edm_sampler
from repro.launch.work import build_trajectory
from repro.sampling import generate
from repro.tables import find_cell

SEEDS = list(range(100, 123))
STEPS = 3
sampler: Callable[..., Tensor] = functools.partial(edm_sampler, num_steps=STEPS, S_churn=2.0, S_noise=1.007)
"""Stochastic: noise is drawn within the steps too."""


@functools.cache
def net(label_dim: int = 10) -> Any:
    bindings = [*TINY] if label_dim else [*TINY, "Dataset.label_dim = 0", "SongUNet.label_dim = 0"]
    made = build_trajectory(resolve(find_cell(CELL), "ci", bindings)).denoiser.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():  # labels and noise must matter, which they do not in a fresh network
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def images(seeds: list[int], **kwargs: Any) -> Tensor:
    return generate(net(), sampler, seeds, **kwargs).images


@pytest.mark.parametrize("batch", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("labels", ["random", "balanced"])
def test_batch_sizes_change_rounding_only(batch: int, labels: Any) -> None:
    whole = images(SEEDS, labels=labels).int()
    assert whole.shape == (23, 1, 8, 8)
    assert (whole - images(SEEDS, labels=labels, batch=batch).int()).abs().max() <= 1


def test_order_changes_rounding_only() -> None:
    order = list(range(len(SEEDS)))
    random.Random(0).shuffle(order)
    whole = images(SEEDS, batch=7).int()
    mixed = images([SEEDS[i] for i in order], batch=7).int()
    assert (whole[order] - mixed).abs().max() <= 1


def test_other_seeds_give_other_images() -> None:
    whole = images(SEEDS)
    assert len({image.numpy().tobytes() for image in whole}) == len(SEEDS)


def test_global_random_numbers_play_no_part() -> None:
    torch.manual_seed(1)
    first = images(SEEDS[:3])
    torch.manual_seed(2)
    assert torch.equal(first, images(SEEDS[:3]))


class Spy:
    """A sampler that keeps its labels and latents."""

    def __init__(self) -> None:
        self.labels: list[Tensor | None] = []
        self.latents: list[Tensor] = []

    def __call__(self, net: Any, latents: Tensor, labels: Tensor | None, noise: Any, after: Any) -> Tensor:
        self.labels.append(labels)
        self.latents.append(latents)
        return noise(latents).clamp(-1, 1)


def test_balanced_labels_follow_the_seed_and_leave_the_noise_alone() -> None:
    spies = {}
    results = {}
    for rule in ("random", "balanced"):
        spies[rule] = Spy()
        results[rule] = generate(net(), spies[rule], SEEDS, labels=rule, batch=8).images  # type: ignore[arg-type]
    chosen = torch.cat([labels for labels in spies["balanced"].labels if labels is not None])
    assert chosen.argmax(1).tolist() == [seed % 10 for seed in SEEDS] and chosen.sum() == len(SEEDS)
    drawn = torch.cat([labels for labels in spies["random"].labels if labels is not None])
    assert drawn.argmax(1).tolist() != chosen.argmax(1).tolist() and drawn.sum() == len(SEEDS)
    assert torch.equal(torch.cat(spies["random"].latents), torch.cat(spies["balanced"].latents))
    assert torch.equal(results["random"], results["balanced"]), "noise after the labels is the same too"


def test_random_labels_are_uniform() -> None:
    spy = Spy()
    generate(net(), spy, list(range(2000)), labels="random", batch=500)
    counts = torch.cat([labels for labels in spy.labels if labels is not None]).sum(0)
    assert float(((counts - 200) ** 2 / 200).sum()) < 27.9  # chi-squared of 9 degrees of freedom at 0.1 %


def test_no_labels_without_classes() -> None:
    spy = Spy()
    generate(net(0), spy, SEEDS[:2])
    assert spy.labels == [None]


def test_progress_rises_to_the_total() -> None:
    seen: list[tuple[int, int]] = []
    images(SEEDS, batch=10, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3 * STEPS and seen == sorted(seen) and seen[-1] == (23, 23)
    assert [done for done, _ in seen[STEPS - 1 :: STEPS]] == [10, 20, 23]


def test_stop_ends_it() -> None:
    calls = [0]

    class Enough(Exception):
        pass

    def stop() -> None:
        calls[0] += 1
        if calls[0] == STEPS + 1:
            raise Enough

    with pytest.raises(Enough):
        images(SEEDS, batch=10, stop=stop)
    assert calls[0] == STEPS + 1


def test_the_network_gathers_no_gradients() -> None:
    images(SEEDS[:2])
    assert all(p.grad is None for p in net().parameters())


@pytest.mark.parametrize("batch", [4, 100])
def test_nfe_is_measured(batch: int) -> None:
    assert generate(net(), sampler, SEEDS[:9], batch=batch).nfe == 2 * STEPS - 1


def test_nfe_of_an_adaptive_sampler_is_a_mean_over_images() -> None:
    adaptive = functools.partial(rk45_sampler, rtol=1e-1, atol=1e-1)
    alone = [generate(net(), adaptive, [seed]).nfe for seed in SEEDS[:4]]
    together = generate(net(), adaptive, SEEDS[:4]).nfe
    assert together == pytest.approx(sum(alone) / 4, rel=0.1) and together > 10

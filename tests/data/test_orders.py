"""Orders: permutations that are known functions of seed and position, and the published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.data.draws import caption_choices, flip_coins, posterior_noise
from repro.data.orders import ORDER_NAMES, EDMOrder, dit_order, edm2_order, make_order, tuple_hash
from repro.errors import UsageError


@pytest.mark.parametrize("name", ORDER_NAMES)
@given(size=st.integers(1, 60), seed=st.integers(0, 2**40), start=st.integers(0, 300), count=st.integers(0, 150))
@settings(max_examples=25, deadline=None)
def test_any_position_can_be_asked_for_at_once(name: str, size: int, seed: int, start: int, count: int) -> None:
    """What was read before moves nothing: a resume inside or across epochs sees the same."""
    whole = make_order(name, size, seed, window=7).indices(0, start + count)
    assert np.array_equal(make_order(name, size, seed, window=7).indices(start, count), whole[start:])
    assert whole.dtype == np.int64


@pytest.mark.parametrize("name", [name for name in ORDER_NAMES if name != "edm"])
def test_epochs_show_each_image_once_and_differ(name: str) -> None:
    order = make_order(name, 50, 3, window=8)
    epochs = [order.indices(50 * epoch, 50) for epoch in range(4)]
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_windows_keep_neighbours_together() -> None:
    """Of 64 images in windows of 8, eight in a row come from one window, whose inner order is shuffled."""
    seen = make_order("window", 64, 0, window=8).indices(0, 64).reshape(8, 8)
    assert all(len(set(row // 8)) == 1 for row in seen)
    assert any(row.tolist() != sorted(row) for row in seen) and (seen[:, 0] // 8).tolist() != list(range(8))


def test_whole_batches_drop_the_rest_of_an_epoch() -> None:
    order = make_order("dit", 10, 0, whole_batches=4)
    assert np.array_equal(order.indices(0, 8), dit_order(10, 0, 0)[:8])
    assert np.array_equal(order.indices(8, 8), dit_order(10, 0, 1)[:8])
    with pytest.raises(UsageError, match="larger than the set"):
        make_order("philox", 3, 0, whole_batches=4)
    with pytest.raises(UsageError, match="no epochs"):
        make_order("edm", 10, 0, whole_batches=4)


def test_the_whole_batches_of_imagenet() -> None:
    """5004 iterations of 256 an epoch."""
    order = make_order("philox", 1281167, 0, whole_batches=256)
    assert order.length == 5004 * 256  # type: ignore[attr-defined]


def test_dit_order_is_pytorchs_distributed_sampler() -> None:
    """Batches of 4 dealt to two ranks in twos: together they hold what one global batch holds here."""
    for epoch in (0, 3):
        samplers = [
            torch.utils.data.DistributedSampler(range(10), 2, rank, shuffle=True, seed=5)  # type: ignore[arg-type]
            for rank in range(2)
        ]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        dealt = [list(sampler) for sampler in samplers]
        ours = dit_order(10, 5, epoch)
        for batch in range(2):
            theirs = {index for rank in dealt for index in rank[2 * batch : 2 * batch + 2]}
            assert theirs == set(ours[4 * batch : 4 * batch + 4].tolist())


@given(st.lists(st.integers(-(2**70), 2**70), min_size=0, max_size=4))
@settings(max_examples=200, deadline=None)
def test_tuple_hash_is_cpythons(values: list[int]) -> None:
    assert tuple_hash(*values) == hash(tuple(values))


def test_edm2_order_by_value() -> None:
    order = np.arange(6)
    np.random.RandomState(hash((7, 2)) % 2**31).shuffle(order)
    assert edm2_order(6, 7, 2).tolist() == order.tolist()


def test_edm_order_replays_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out from the specification, item by item, over several blocks and backwards."""
    size, window = 9, round(9 * 0.5)
    random = np.random.RandomState(4)
    order, wanted = np.arange(size), []
    random.shuffle(order)
    for position in range(500):
        here = position % size
        wanted.append(int(order[here]))
        there = (here - random.randint(window)) % size
        order[here], order[there] = order[there], order[here]
    monkeypatch.setattr(EDMOrder, "BLOCK", 32)
    ours = EDMOrder(size, 4)
    for start, count in ((0, 500), (470, 30), (3, 100), (31, 2), (64, 64)):
        assert ours.indices(start, count).tolist() == wanted[start : start + count]


def test_an_order_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'philox'"):
        make_order("philo", 3, 0)


@given(start=st.integers(0, 2000), count=st.integers(0, 600), seed=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_coins_and_choices_are_functions_of_the_position(start: int, count: int, seed: int) -> None:
    assert np.array_equal(flip_coins(seed, start, count), flip_coins(seed, 0, start + count)[start:])
    assert np.array_equal(caption_choices(seed, start, count), caption_choices(seed, 0, start + count)[start:])


def test_coins_are_fair() -> None:
    """20,000 coins: mean 1/2 within 5 standard deviations of 0.0035; neighbours do not depend on each other."""
    coins = flip_coins(1, 12345, 20000).astype(float)
    assert abs(coins.mean() - 0.5) < 0.018
    assert abs(np.corrcoef(coins[:-1], coins[1:])[0, 1]) < 0.036
    choices = caption_choices(1, 0, 20000) % 5
    assert choices.min() == 0 and np.abs(np.bincount(choices, minlength=5) / 20000 - 0.2).max() < 0.015


def test_posterior_noise_is_standard_normal_and_keyed_by_position() -> None:
    noise = posterior_noise(3, 10, (4, 4, 32, 32))
    assert torch.equal(posterior_noise(3, 12, (1, 4, 32, 32))[0], noise[2])
    assert abs(float(noise.mean())) < 0.04 and abs(float(noise.std()) - 1) < 0.03
    assert not torch.equal(noise[0], noise[1])

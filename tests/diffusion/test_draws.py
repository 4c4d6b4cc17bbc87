"""Random draws: what they depend on, and what not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.diffusion.draws import StackedGenerator, StepDraws, derive_seed


def test_derive_seed_is_pinned() -> None:
    """Changing these numbers changes every training run and must be a decision."""
    assert derive_seed(0, "noise", 0) == 4_539_287_498_506_126_977
    assert derive_seed(123, "sigma", 7) == 7_279_368_839_982_928_426


def test_derive_seed_is_unambiguous() -> None:
    variants = [("ab", "c"), ("a", "bc"), ("abc",), (1, 23), (12, 3), ("1", 23), (1, "23"), (-1, 23), ()]
    seeds = {derive_seed(*parts) for parts in variants}
    assert len(seeds) == len(variants)
    assert all(0 <= seed < 2**63 for seed in seeds)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_slices_are_parts_of_the_whole(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 20))
    start = data.draw(st.integers(0, total - 1))
    count = data.draw(st.integers(1, total - start))
    whole = StepDraws(5, 3, total)
    part = StepDraws(5, 3, total, start, count)
    stop = start + count
    assert torch.equal(part.rand([count, 2], "a"), whole.rand([total, 2], "a")[start:stop])
    assert torch.equal(part.randn([3, count, 1], "a", 1), whole.randn([3, total, 1], "a", 1)[:, start:stop])
    assert torch.equal(part.randint(9, [count], "a"), whole.randint(9, [total], "a")[start:stop])
    # The streams stay in step after three different draws.
    assert torch.equal(part.randn([count], "a"), whole.randn([total], "a")[start:stop])


def test_purposes_are_independent_of_each_other() -> None:
    plain, mixed = StepDraws(0, 0, 4), StepDraws(0, 0, 4)
    mixed.rand([4], "augment")
    assert torch.equal(plain.randn([4], "noise"), mixed.randn([4], "noise"))
    assert not torch.equal(StepDraws(0, 0, 4).rand([4], "x"), StepDraws(0, 0, 4).rand([4], "y"))


def test_seed_and_step_matter() -> None:
    draws = [StepDraws(seed, step, 4).randn([4], "noise") for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(d.tolist()) for d in draws}) == 4


def test_draws_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    StepDraws(0, 0, 4).randn([4], "noise")
    StackedGenerator([1, 2]).randn([2, 3])
    assert torch.equal(before, torch.random.get_rng_state())


def test_dtypes() -> None:
    draws = StepDraws(0, 0, 2)
    kinds = [draws.rand([2], "a").dtype, draws.randn([2], "a").dtype, draws.randint(3, [2], "a").dtype]
    assert kinds == [torch.float32, torch.float32, torch.int64]


def test_wrong_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="not within"):
        StepDraws(0, 0, 4, 2, 3)
    with pytest.raises(ValueError, match="must count the 2 images"):
        StepDraws(0, 0, 4, 0, 2).rand([4], "a")


def test_stacked_generator_does_not_depend_on_its_batch() -> None:
    together = StackedGenerator([7, 8, 9])
    alone = StackedGenerator([8])
    for _ in range(2):
        assert torch.equal(together.randn([3, 2, 5])[1], alone.randn([1, 2, 5])[0])
    assert together.randint(1000)[1] == alone.randint(1000)[0]
    like = torch.zeros(3, 4, dtype=torch.float64)
    first, second = together.randn_like(like), alone.randn_like(like[:1])
    assert first.dtype == torch.float64
    assert torch.equal(first[1], second[0])


def test_stacked_generator_seeds_modulo_32_bits() -> None:
    a, b = StackedGenerator([5]), StackedGenerator([5 + 2**32])
    assert torch.equal(a.randn([1, 4]), b.randn([1, 4]))


def test_stacked_generator_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match="2 seeds"):
        StackedGenerator([1, 2]).randn([3, 4])

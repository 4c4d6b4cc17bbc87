"""Streamed moments: exact, hence the same bits however the features arrive."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.metrics.frechet import Array, Moments
from repro.metrics.moments import StreamedMoments, within_bound


def features(n: int, d: int, seed: int, offset: float = 0.5) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray((offset + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))).astype(np.float32))


def streamed(values: Array) -> StreamedMoments:
    moments = StreamedMoments()
    moments.update(values)
    return moments


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 97))
def test_any_order_batching_and_number_of_ranks_gives_the_same_bits(seed: int, world: int, batch: int) -> None:
    values = features(300, 5, 1)
    whole = streamed(values)
    shuffled = values[np.random.default_rng(seed).permutation(300)]
    ranks = [StreamedMoments() for _ in range(world)]
    for index, start in enumerate(range(0, 300, batch)):
        ranks[index % world].update(shuffled[start : start + batch])
    merged = StreamedMoments()
    for rank in ranks[::-1]:
        merged.merge(rank)
    assert merged.exact and merged.count == 300
    assert np.array_equal(merged.mean, whole.mean) and np.array_equal(merged.covariance, whole.covariance)


def test_the_mergeable_form_does_depend_on_the_order() -> None:
    """Otherwise the test above would show nothing."""
    values = features(300, 5, 1)
    one, two = Moments(), Moments()
    one.update(values)
    for row in values[::-1]:
        two.update(row[None])
    assert not np.array_equal(one.covariance, two.covariance)


@pytest.mark.parametrize("offset", [0.5, 30.0, 300.0])
def test_covariance_is_the_exact_one_rounded_once(offset: float) -> None:
    """In rational arithmetic; a mean 300 times the spread costs no digit. (Beyond 370 they do not fit.)"""
    values = features(200, 2, 3, offset)
    found = streamed(values)
    assert found.exact
    columns = [[Fraction(float(x)) for x in column] for column in values.T]
    means = [sum(column) / 200 for column in columns]
    for i in range(2):
        for j in range(2):
            pairs = zip(columns[i], columns[j], strict=True)
            exact = float(sum((x - means[i]) * (y - means[j]) for x, y in pairs) / 199)
            # 2^-32 steps: nothing of a float32 above 2^-8 is dropped, and of a smaller one little
            assert found.covariance[i, j] == pytest.approx(exact, rel=1e-11)
        assert found.mean[i] == pytest.approx(float(means[i]), abs=1e-11)


def test_beyond_the_bound_it_goes_on_and_says_so() -> None:
    values = features(400, 3, 2, offset=4000.0)
    found = StreamedMoments()
    for start in range(0, 400, 50):
        found.update(values[start : start + 50])
    assert not found.exact
    wide = values.astype(np.float64)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-14)


@pytest.mark.parametrize("scale", [0.1, 0.01, 1e-3, 1e-5])
def test_small_features_keep_their_digits(scale: float) -> None:
    values = (scale * features(200, 8, 2)).astype(np.float32)
    found, wide = StreamedMoments(), values.astype(np.float64)
    for start in range(0, 200, 50):
        found.update(values[start : start + 50])
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-9, atol=1e-10 * scale)
    expected = np.cov(wide, rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=0, atol=1e-10 * expected.max())


def test_no_features_at_all_are_exact() -> None:
    assert streamed(np.zeros((5, 3))).exact


def test_the_bound_is_the_written_one() -> None:
    assert within_bound(50_000, 25.0) and not within_bound(50_000, 26.0)
    assert within_bound(2**17, 15.9) and not within_bound(2**17, 16.1)
    assert not within_bound(2**24, 1.0), "the mixed sums have a bound of their own"


def test_features_at_the_very_bound_are_still_exact() -> None:
    """Rows of one magnitude at the limit: the exact sum of squares against Python's integers."""
    largest = np.sqrt(2.0**25 / 1000) - 1e-3
    values = np.full((1000, 1), np.float32(largest))
    found = streamed(values)
    assert found.exact and found.covariance[0, 0] == pytest.approx(0, abs=1e-20)


def test_parts_can_be_taken_out_again() -> None:
    values = features(90, 4, 5)
    rest = streamed(values).without(streamed(values[30:60]))
    wanted = streamed(np.concatenate([values[:30], values[60:]]))
    assert np.array_equal(rest.mean, wanted.mean) and np.array_equal(rest.covariance, wanted.covariance)
    with pytest.raises(ValueError, match="exact"):
        streamed(values + 1e5).without(streamed(values[:3]))


def test_bad_features() -> None:
    moments = StreamedMoments()
    for values, message in (
        (np.zeros(3), r"\(n, d\)"),
        (np.array([[np.nan]]), "finite"),
        (np.array([[np.inf]]), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.update(values)
    with pytest.raises(ValueError, match="no features"):
        _ = moments.mean
    moments.update(np.zeros((0, 3)))
    moments.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="two features"):
        _ = moments.covariance
    with pytest.raises(ValueError, match="differ: 3 and 2"):
        moments.update(np.zeros((2, 2)))
    empty = StreamedMoments()
    moments.merge(empty)
    empty.merge(moments)
    assert (moments.count, empty.count) == (1, 1)

"""Frechet distance and mergeable moments, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.metrics.frechet import Moments, frechet_distance

Array = npt.NDArray[np.float64]


def rotation(d: int, seed: int) -> Array:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0])


def test_one_dimension_by_hand() -> None:
    """N(1, 4) and N(4, 9): (1 - 4)^2 + (2 - 3)^2 = 10."""
    assert frechet_distance([1.0], [[4.0]], [4.0], [[9.0]]) == pytest.approx(10, abs=1e-12)


@given(d=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_commuting_covariances_have_a_closed_form(d: int, seed: int) -> None:
    """Equal eigenvectors: |mu1 - mu2|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(seed)
    q = rotation(d, seed)
    a, b, mu1, mu2 = rng.uniform(0, 4, d), rng.uniform(0, 4, d), rng.standard_normal(d), rng.standard_normal(d)
    wanted = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, (q * a) @ q.T, mu2, (q * b) @ q.T) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_covariances_that_do_not_commute() -> None:
    """Of 2x2 matrices tr (A B)^(1/2) = sqrt(tr A B + 2 sqrt(det A det B))."""
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert frechet_distance([0, 0], a, [0, 0], b) == pytest.approx(3 + 4 - 2 * root, rel=1e-13)


def test_symmetric_zero_for_equals_and_rotation_invariant() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 6)), 1 + 2 * rng.standard_normal((40, 6))
    one, two = (x.mean(0), np.cov(x, rowvar=False)), (y.mean(0), np.cov(y, rowvar=False))
    distance = frechet_distance(*one, *two)
    assert distance == pytest.approx(frechet_distance(*two, *one), rel=1e-12)
    assert frechet_distance(*one, *one) == pytest.approx(0, abs=1e-13)
    q = rotation(6, 2)
    turned = [(mu @ q, q.T @ sigma @ q) for mu, sigma in (one, two)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(distance, rel=1e-12)


def test_ill_conditioned_covariances_keep_their_small_eigenvalues() -> None:
    """Condition 1e12: cutting eigenvalues off by a threshold would lose their part."""
    q, a, b = rotation(6, 3), 10.0 ** -np.arange(0, 12, 2), 10.0 ** -np.arange(12, 0, -2.0)
    wanted = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(np.zeros(6), (q * a) @ q.T, np.zeros(6), (q * b) @ q.T)
    assert found == pytest.approx(wanted, abs=1e-7)


def test_fewer_features_than_dimensions() -> None:
    """Singular covariances, against the nuclear norm of the centred features' product (exact for any rank)."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((10, 40)), rng.standard_normal((12, 40))
    a, b = (x - x.mean(0)) / 3, (y - y.mean(0)) / math.sqrt(11)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum()
    wanted -= 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    moments = [Moments(), Moments()]
    moments[0].update(x)
    moments[1].update(y)
    found = frechet_distance(moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(3), np.eye(3), "dimensions differ"),
        (np.zeros(2), np.eye(3), "belong together"),
        (np.zeros((1, 2)), np.eye(2), "belong together"),
        (np.array([0, np.nan]), np.eye(2), "finite"),
        (np.zeros(2), np.diag([1, np.inf]), "finite"),
    ],
)
def test_statistics_that_cannot_be_compared_are_refused(mu: Array, sigma: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(mu, sigma, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mu, sigma)


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_moments_in_any_number_of_parts(sizes: list[int], ranks: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((sum(sizes), 5)) * 3 + 1
    parts, position = [Moments() for _ in range(ranks)], 0
    for index, size in enumerate(sizes):
        parts[index % ranks].update(features[position : position + size])
        position += size
    total = Moments()
    for part in parts:
        total.merge(part)
    assert total.count == len(features)
    np.testing.assert_allclose(total.mean, features.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(features, rowvar=False), rtol=0, atol=1e-11)


def test_moments_keep_their_digits_at_a_large_offset() -> None:
    """The mean rounds at 2^-52 of the offset, times a spread of 4: 1e-9. Raw sums of products lose five digits more."""
    integers = np.random.default_rng(0).integers(-8, 9, (999, 4)).astype(np.float64)
    features, moments = integers / 3 + 2**20, Moments()
    for part in np.array_split(features, 50):
        moments.update(part)
    wanted = np.cov(integers / 3, rowvar=False)
    raw = (features.T @ features - 999 * np.outer(features.mean(0), features.mean(0))) / 998
    assert np.abs(raw - wanted).max() > 1e-5
    np.testing.assert_allclose(moments.covariance, wanted, rtol=0, atol=1e-9)


def test_merging_leaves_the_other_side_alone() -> None:
    one, two = Moments(), Moments()
    two.update([[1.0, 2.0], [3.0, 4.0]])
    one.merge(two)
    one.update([[100.0, 100.0]])
    one.merge(Moments())
    assert two.count == 2 and two.mean.tolist() == [2, 3] and two.covariance.tolist() == [[2, 2], [2, 2]]
    assert one.count == 3 and one.mean == pytest.approx([104 / 3, 106 / 3])


def test_moments_refuse_what_they_cannot_take() -> None:
    moments = Moments()
    moments.update(np.zeros((2, 3)))
    other = Moments()
    other.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="3 and 4"):
        moments.merge(other)
    with pytest.raises(ValueError, match="3 and 4"):
        moments.update(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        moments.update(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        moments.update([[0.0, math.nan, 0.0]])
    assert moments.count == 2
    with pytest.raises(ValueError, match="no features"):
        Moments().mean  # noqa: B018
    single = Moments()
    single.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="two features or more, not 1"):
        single.covariance  # noqa: B018


def test_a_covariance_that_is_not_symmetric_is_refused() -> None:
    with pytest.raises(ValueError, match="second statistics: the covariance is not symmetric"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))

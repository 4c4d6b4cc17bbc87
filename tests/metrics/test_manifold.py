"""Precision and recall."""

from __future__ import annotations

import numpy as np
import pytest

from repro.metrics.manifold import precision_recall, squared_radii


def test_by_hand() -> None:
    """On a line, k = 1: reference radii 1, 1, 8; generated 0.5 lies inside, 30 does not."""
    reference, generated = np.array([[0.0], [1.0], [9.0]]), np.array([[0.5], [30.0]])
    assert squared_radii(reference, 1).tolist() == [1, 1, 64]
    found = precision_recall(generated, reference, 1)
    assert found.precision == 0.5 and found.recall == 1  # generated radii are 29.5
    assert found.f_score == pytest.approx(2 / 3)


def test_the_border_belongs_to_the_ball_whatever_the_rounding() -> None:
    """Ties of numbers that no float holds exactly, far from the origin."""
    rng = np.random.default_rng(0)
    reference = 1000 + 0.1 * rng.integers(0, 4, (200, 6))
    plain = np.sort(((reference[:, None] - reference[None]) ** 2).sum(axis=2), axis=1)[:, 3]
    assert np.array_equal(squared_radii(reference, 3), plain)
    generated = 1000 + 0.1 * rng.integers(0, 5, (150, 6))
    distances = ((generated[:, None] - reference[None]) ** 2).sum(axis=2)
    wanted = (distances <= plain).any(axis=1).mean()
    for rows in (1, 7, 2000):
        assert precision_recall(generated, reference, 3, rows=rows).precision == wanted


def test_equal_sets_are_precise_and_recalled() -> None:
    values = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32) * 100
    found = precision_recall(values, values[::-1], 3)
    assert (found.precision, found.recall) == (1, 1)


def test_bad_sets() -> None:
    with pytest.raises(ValueError, match="3 points have no 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)), 3)
    with pytest.raises(ValueError, match="one d"):
        precision_recall(np.zeros((5, 2)), np.zeros((5, 3)), 3)

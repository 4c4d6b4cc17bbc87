"""Inception score, in torch-fidelity's form and in the ADM suite's."""

from __future__ import annotations

import numpy as np
import pytest

from repro.metrics.inception_score import inception_score, inception_score_adm


def test_extremes_by_hand() -> None:
    """Certain and all different: as many as classes. All the same: 1."""
    certain = 1000 * np.eye(4)
    assert inception_score(certain, splits=1)[0] == pytest.approx(4)
    assert inception_score(np.zeros((8, 4)), splits=2) == (pytest.approx(1), pytest.approx(0))
    assert inception_score_adm(np.concatenate([certain, certain[:1]]), split_size=4) == pytest.approx((4 + 1) / 2)


def test_order_matters_only_without_shuffling_into_one_split() -> None:
    logits = np.random.default_rng(0).standard_normal((60, 5)) * 3
    order = np.random.default_rng(1).permutation(60)
    one, two = (inception_score(x, splits=1, shuffle=False)[0] for x in (logits, logits[order]))
    assert one == pytest.approx(two, rel=1e-12)
    assert inception_score(logits)[0] != inception_score(logits, shuffle=False)[0]


def test_bad_logits() -> None:
    for logits, message in ((np.zeros(3), "classes"), (np.full((3, 2), np.inf), "finite")):
        with pytest.raises(ValueError, match=message):
            inception_score(logits)
    with pytest.raises(ValueError, match="cannot be split"):
        inception_score(np.zeros((3, 2)), splits=4)

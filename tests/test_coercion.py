from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from repro.coercion import coerce


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        (1.0, int, 1),
        (None, int | None, None),
        (2, float | None, 2.0),
        ((1, 2), Sequence[int], [1, 2]),
        ([1, 2], tuple[float, float], [1.0, 2.0]),
        ([[2, 2], (18, 8)], Sequence[tuple[int, int]] | None, [[2, 2], [18, 8]]),
        ("mean", Literal["sum", "mean"], "mean"),
        ({"a": 1}, Any, {"a": 1}),
    ],
)
def test_values_take_the_declared_form(value: Any, hint: Any, expected: Any) -> None:
    found = coerce(value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1.5, int),
        (True, int),
        (True, float),
        ("a", float),
        (1, bool),
        (3, str),
        ("abc", Sequence[int]),
        ([1, 2, 3], tuple[int, int]),
        ("max", Literal["sum", "mean"]),
        (None, int),
        ("SongUNet", object),
    ],
)
def test_other_types_are_refused(value: Any, hint: Any) -> None:
    with pytest.raises(TypeError):
        coerce(value, hint)

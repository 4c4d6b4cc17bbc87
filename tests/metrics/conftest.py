"""What the tests of metrics share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from repro.metrics import digits


@pytest.fixture(autouse=True)
def _fresh_weights() -> Iterator[None]:
    """A test may exchange the weights file; the next one must not get it from the cache."""
    digits.weights_bytes.cache_clear()
    yield
    digits.weights_bytes.cache_clear()

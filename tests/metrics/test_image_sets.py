"""Sets of images, read in batches: all of them, or a random part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repro.errors import CorruptData
from repro.metrics.images import ImageSet

IMAGES = torch.arange(23, dtype=torch.uint8)[:, None, None, None].expand(23, 1, 2, 2)


def numbers(size: int, limit: int | None = None, read: int = 5) -> list[list[int]]:
    """The images that come, by number, in the batches in which they come."""
    images = ImageSet("x", 23, lambda _: iter(IMAGES.split(read)))
    return [batch[:, 0, 0, 0].tolist() for batch in images.batches(size, limit)]


@pytest.mark.parametrize("read", [1, 4, 23])
def test_all_of_them_in_order(read: int) -> None:
    assert numbers(10, None, read) == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert numbers(10, 23, read) == numbers(10)


@pytest.mark.parametrize("read", [1, 4, 23])
def test_a_part_is_random_sorted_and_always_the_same(read: int) -> None:
    order = list(range(23))
    np.random.RandomState(0).shuffle(order)
    expected = sorted(order[:7])
    assert numbers(3, 7, read) == [expected[:3], expected[3:6], expected[6:]]
    assert expected != list(range(7))


def test_images_of_two_sizes_are_refused() -> None:
    two = [torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, 1, 3, 3, dtype=torch.uint8)]
    with pytest.raises(CorruptData, match=r"x: images of \(1, 2, 2\) and of \(1, 3, 3\)"):
        list(ImageSet("x", 4, lambda _: iter(two)).batches(2))

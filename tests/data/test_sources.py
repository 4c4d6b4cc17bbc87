"""Sources: the embedded digits by value, and the sets that a user has to prepare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from repro.data.sources import FFHQ, AFHQv2, Cifar10, Digits
from repro.errors import MissingPrerequisite, ReproError, UsageError


def test_digits_are_scikit_learns_rounded_to_bytes_then_mirrored() -> None:
    images, labels = Digits().images(8, 1)
    bunch = load_digits()
    assert images.shape == (3594, 1, 8, 8) and images.dtype == np.uint8
    assert labels.shape == (3594,) and labels.dtype == np.int64
    # first pixels of the first digit are 0 0 5 13 of 16: 255 * 5 / 16 = 79.69, 255 * 13 / 16 = 207.19
    assert images[0, 0, 0, :4].tolist() == [0, 0, 80, 207]
    assert np.array_equal(labels[:1797], bunch.target) and np.array_equal(labels[1797:], bunch.target)
    assert np.array_equal(images[1797:], images[:1797, :, :, ::-1])
    assert np.abs(images[:1797, 0] - 255 * bunch.images / 16).max() <= 0.5
    assert images.max() == 255


def test_digits_are_enlarged_by_repetition() -> None:
    small, labels = Digits().images(8, 1)
    large, same = Digits().images(24, 3)
    assert large.shape == (3594, 3, 24, 24) and np.array_equal(labels, same)
    for channel in range(3):
        for row in range(3):
            for column in range(3):
                assert np.array_equal(large[:, channel, row::3, column::3], small[:, 0])


def test_unmirrored_digits_are_another_set() -> None:
    plain = Digits(count=1797, mirrored=False)
    assert len(plain.images(8, 1)[0]) == 1797
    assert plain.name != Digits().name and plain.options != Digits().options
    assert Digits().num_classes == 10 and Digits().count == 3594


@pytest.mark.parametrize(("resolution", "channels"), [(0, 1), (12, 1), (-8, 1), (8, 2), (8, 0)])
def test_digits_refuse_sizes_that_cannot_be_had(resolution: int, channels: int) -> None:
    with pytest.raises(UsageError, match=str(channels if resolution == 8 else resolution)):
        Digits().images(resolution, channels)


def test_digits_refuse_another_count() -> None:
    with pytest.raises(UsageError, match=r"1797.*3594"):
        Digits(count=1797).images(8, 1)


@pytest.mark.parametrize(
    ("source", "count", "classes"), [(Cifar10(), 50000, 10), (FFHQ(), 70000, 0), (AFHQv2(), None, 0)]
)
def test_external_sets_say_what_is_missing_and_where(
    source: Cifar10 | FFHQ | AFHQv2, count: int | None, classes: int
) -> None:
    assert source.count == count and source.num_classes == classes and not source.embedded
    with pytest.raises(MissingPrerequisite) as caught:
        source.images(32, 3)
    message = str(caught.value)
    assert source.name in message and f"{source.name}-32x3" in message and "manifest.json" in message
    assert "\n" not in message
    assert str(Path("here")) in source.missing_message(Path("here"))


def test_exit_codes() -> None:
    from repro.errors import CheckFailed, CorruptData

    codes = {kind: kind.exit_code for kind in (ReproError, UsageError, MissingPrerequisite, CorruptData, CheckFailed)}
    assert list(codes.values()) == [2, 2, 3, 2, 1]
    assert all(issubclass(kind, ReproError) for kind in codes)

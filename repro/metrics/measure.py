"""Images -> features -> statistics, in one pass and little memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor

from repro.metrics.backends import Extractor, Features
from repro.metrics.moments import StreamedMoments

BLOCK = 250
"""Images of a block. Blocks are cut from the index range, whatever the number of ranks, and run as the same batches."""


@dataclasses.dataclass
class Measured:
    """Moments of every layer, and the features that were asked to be kept, in order (float32)."""

    moments: dict[str, StreamedMoments]
    kept: dict[str, npt.NDArray[np.float32]]

    @property
    def n(self) -> int:
        return max((moments.count for moments in self.moments.values()), default=0)

    @property
    def exact(self) -> bool:
        """Whether the bits of all moments are independent of the order."""
        return all(moments.exact for moments in self.moments.values())


def features_of(
    batches: Iterable[Tensor], extractor: Extractor, progress: Callable[[int], None] = lambda done: None
) -> Iterator[Features]:
    """Features of batches of images; `progress` is called with the number of images done."""
    done = 0
    for images in batches:
        yield extractor(images)
        done += len(images)
        progress(done)


def measure(blocks: Iterable[Features], moments: Iterable[str], keep: Iterable[str] = (), count: int = 0) -> Measured:
    """Statistics of blocks of features.

    Args:
        blocks: layer -> (n, d) float32, of consecutive images.
        moments: layers whose mean and covariance are wanted.
        keep: layers that are kept whole, count x d float32.
        count: images in all; needed to keep a layer.

    Raises:
        ValueError: more or fewer images than `count`, where a layer is kept.
    """
    found = {layer: StreamedMoments() for layer in moments}
    kept: dict[str, npt.NDArray[np.float32]] = {}
    layers, done = tuple(keep), 0
    for block in blocks:
        size = len(next(iter(block.values())))
        for layer, state in found.items():
            state.update(block[layer])
        for layer in layers:
            whole = kept.setdefault(layer, np.empty((count, block[layer].shape[1]), dtype=np.float32))
            if done + size > count:
                raise ValueError(f"more than the promised {count} images")
            whole[done : done + size] = block[layer]
        done += size
    if layers and done != count:
        raise ValueError(f"{done} images, {count} were promised")
    return Measured(found, kept)

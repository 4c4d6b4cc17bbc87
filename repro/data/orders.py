"""In which order a trajectory sees its images: position (images seen so far) -> index, computed at any position.

The default of this project and those of the papers, where they are known. Ranks share the order: rank r of W takes its
slice of each global batch, so that no order depends on how many processes there are.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from repro.diffusion.draws import derive_seed
from repro.errors import UsageError
from repro.suggest import suggest

Indices = npt.NDArray[np.int64]


class Order(Protocol):
    """The positions start .. start + count - 1 of a trajectory: (count,) int64 in 0..size-1."""

    def indices(self, position: int, count: int) -> Indices: ...


class EpochOrder:
    """A permutation an epoch, each computed from its number alone.

    Args:
        permutation: epoch -> permutation of 0..size-1.
        length: images of an epoch, fewer than size where the rest of an epoch is dropped.
    """

    def __init__(self, permutation: Callable[[int], Indices], length: int) -> None:
        self.length = length
        # a batch may cross into the next epoch; more than two epochs are recomputed at need
        self._permutation = functools.lru_cache(maxsize=2)(permutation)
        self._lock = threading.Lock()  # workers must not compute one epoch several times

    def indices(self, position: int, count: int) -> Indices:
        pieces: list[Indices] = []
        end = position + count
        while position < end:
            epoch, offset = divmod(position, self.length)
            taken = min(end - position, self.length - offset)
            with self._lock:
                permutation = self._permutation(epoch)
            pieces.append(permutation[offset : offset + taken])
            position += taken
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def epoch_order(size: int, seed: int, epoch: int) -> Indices:
    """Permutation of 0..size-1 for one epoch, keyed by (seed, epoch).

    The stable argsort of raw Philox words: neither depends on NumPy's version, as `Generator.permutation` may.
    """
    words = np.random.Philox(key=derive_seed(seed, "data-order", epoch)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def window_order(size: int, seed: int, epoch: int, window: int) -> Indices:
    """A permutation that reads shards nearly in sequence: windows of neighbouring images, shuffled, and so are they.

    What is near in the order is near on disk, whatever the shard sizes are: the order of remote shards.
    """
    starts = np.arange(0, size, window)
    chosen = starts[epoch_order(len(starts), derive_seed(seed, "windows"), epoch)]
    pieces = [
        start + epoch_order(min(window, size - int(start)), derive_seed(seed, "window", int(start)), epoch)
        for start in chosen
    ]
    return np.concatenate(pieces)


def edm2_order(size: int, seed: int, epoch: int) -> Indices:
    """EDM2's permutation: a legacy generator, seeded with CPython's hash of (seed, epoch), shuffles 0..size-1."""
    order = np.arange(size, dtype=np.int64)
    np.random.RandomState(tuple_hash(seed, epoch) % (1 << 31)).shuffle(order)
    return order


def dit_order(size: int, seed: int, epoch: int) -> Indices:
    """PyTorch's DistributedSampler, which DiT and U-DiT use: randperm of a generator seeded with seed + epoch."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch)).numpy()


def tuple_hash(*values: int) -> int:
    """CPython's hash of a tuple of integers (since 3.8; xxHash on the items), written out: it must never change."""
    mask = (1 << 64) - 1
    accumulator = 2870177450012600261
    for value in values:
        lane = abs(value) % ((1 << 61) - 1) * (1 if value >= 0 else -1)
        lane = -2 if lane == -1 else lane
        accumulator = (accumulator + lane * 14029467366897019727) & mask
        accumulator = ((accumulator << 31) | (accumulator >> 33)) & mask
        accumulator = accumulator * 11400714785074694791 & mask
    accumulator = (accumulator + (len(values) ^ (2870177450012600261 ^ 3527539))) & mask
    accumulator = 1546275796 if accumulator == mask else accumulator
    return accumulator - (1 << 64) if accumulator >> 63 else accumulator


class EDMOrder:
    """EDM's endless shuffle: a permutation that is walked in circles while entries behind the walk are swapped.

    The state at a position follows from all earlier swaps, so that going back replays from the start (about a second
    for two million images); going on costs nothing, and a few blocks behind are remembered.

    Args:
        size: number of images.
        seed: of NumPy's legacy generator.
        window: how far behind an entry is swapped at most, as a part of the size.
        shuffle: False walks 0..size-1 in order.
    """

    BLOCK = 1 << 14

    def __init__(self, size: int, seed: int, window: float = 0.5, shuffle: bool = True) -> None:
        self.size = size
        self.seed = seed
        self.window = round(size * window) if shuffle else 0
        self.shuffle = shuffle
        self._blocks: OrderedDict[int, Indices] = OrderedDict()
        self._lock = threading.Lock()
        self._restart()

    def indices(self, position: int, count: int) -> Indices:
        first, last = position // self.BLOCK, (position + max(count, 1) - 1) // self.BLOCK
        with self._lock:
            blocks = np.concatenate([self._block(number) for number in range(first, last + 1)])
        offset = position - first * self.BLOCK
        return blocks[offset : offset + count].copy()

    def _restart(self) -> None:
        self._random = np.random.RandomState(self.seed % (1 << 32))
        order = np.arange(self.size)
        if self.shuffle:
            self._random.shuffle(order)
        self._order: list[int] = order.tolist()
        self._next = 0

    def _block(self, number: int) -> Indices:
        if number in self._blocks:
            return self._blocks[number]
        if number < self._next:
            self._restart()
        while self._next <= number:
            self._blocks[self._next] = self._walk(self._next * self.BLOCK)
            self._next += 1
            if len(self._blocks) > 64:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _walk(self, start: int) -> Indices:
        """The indices of one block. After it is seen, each entry is swapped with one of the `window` behind it."""
        order, size = self._order, self.size
        swaps = self._random.randint(self.window, size=self.BLOCK).tolist() if self.window >= 2 else ()
        seen = []
        for step in range(self.BLOCK):
            here = (start + step) % size
            seen.append(order[here])
            if swaps:
                there = (here - swaps[step]) % size
                order[here], order[there] = order[there], order[here]
        return np.array(seen, dtype=np.int64)


ORDER_NAMES = ("philox", "edm2", "dit", "edm", "window")


def make_order(name: str, size: int, seed: int, window: int = 16384, whole_batches: int | None = None) -> Order:
    """The order of a name.

    Args:
        name: `philox` (the default), `window`, `edm`, `edm2` or `dit`.
        size: number of images, mirror images included.
        seed: training seed.
        window: images of a window, for `window`.
        whole_batches: the batch; images after an epoch's last whole batch are left out (DiT, U-DiT). None shows all.

    Raises:
        UsageError: an unknown name, or a batch larger than the set.
    """
    if name not in ORDER_NAMES:
        raise UsageError(f"Dataset.order: no order {name!r}{suggest(name, ORDER_NAMES)}")
    if name == "edm":
        if whole_batches is not None:
            raise UsageError("Dataset.order: the order 'edm' has no epochs whose last batch could be dropped")
        return EDMOrder(size, seed)
    length = size - size % whole_batches if whole_batches else size
    if length == 0:
        raise UsageError(f"Dataset.whole_batches: a batch of {whole_batches} is larger than the set of {size}")
    permutations: dict[str, Callable[..., Indices]] = {
        "philox": epoch_order,
        "edm2": edm2_order,
        "dit": dit_order,
        "window": functools.partial(window_order, window=window),
    }
    return EpochOrder(functools.partial(permutations[name], size, seed), length)

"""Random numbers of the data pipeline: functions of (seed, position in the trajectory), computed at any position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.diffusion.draws import derive_seed

_WORDS = 4  # 64-bit words that Philox gives a counter


def flip_coins(seed: int, position: int, count: int) -> npt.NDArray[np.bool_]:
    """(count,) fair coins for positions position .. position + count - 1."""
    words = 64 * _WORDS
    raw = _words(derive_seed(seed, "data-flip"), position // words, -(-(position % words + count) // words))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8), bitorder="little")
    return bits[position % words : position % words + count].astype(bool)


def caption_choices(seed: int, position: int, count: int) -> npt.NDArray[np.int64]:
    """(count,) integers in 0 .. 2**62 - 1, to be taken modulo a number of captions."""
    raw = _words(derive_seed(seed, "data-caption"), position // _WORDS, -(-(position % _WORDS + count) // _WORDS))
    return (raw[position % _WORDS : position % _WORDS + count] >> np.uint64(2)).astype(np.int64)


def posterior_noise(seed: int, position: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 of `shape`, whose first axis counts the positions; one generator a position."""
    noise = torch.empty(*shape)
    for number in range(shape[0]):
        generator = torch.Generator().manual_seed(derive_seed(seed, "data-posterior", position + number))
        torch.randn(tuple(shape[1:]), generator=generator, out=noise[number])
    return noise


def _words(key: int, counter: int, blocks: int) -> npt.NDArray[np.uint64]:
    """4 words a counter value, of `blocks` values from `counter` on."""
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(_WORDS * max(blocks, 1)), dtype=np.uint64)

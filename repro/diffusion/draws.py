"""Random draws that depend on what they are for, never on batch splits, processes or the order of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that follows from the parts. Different sequences of parts are encoded differently."""
    digest = hashlib.sha256()
    for part in parts:
        kind = b"i" if isinstance(part, int) else b"s"
        payload = str(int(part) if isinstance(part, int) else part).encode("utf-8")
        digest.update(kind + str(len(payload)).encode("ascii") + b":" + payload)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


class Draws(Protocol):
    """Source of random CPU tensors. `purpose` names the stream, `batch_axis` the axis of `shape` that counts images."""

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        """Uniform on [0, 1), float32."""

    def randn(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        """Standard normal, float32."""

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        """Uniform integers 0 ... high - 1, int64."""


class StepDraws:
    """The draws of one training step for images [start, start + count) of its global batch.

    There is one generator for each purpose, seeded by (seed, purpose, step) and advanced draw after draw. Every draw is
    made for the whole global batch and then narrowed, so that the same image gets the same numbers however the batch is
    split into micro-batches and processes.

    step: index of the training step. global_batch: images in it. ValueError for a slice outside of the batch.
    """

    def __init__(self, seed: int, step: int, global_batch: int, start: int = 0, count: int | None = None) -> None:
        count = global_batch - start if count is None else count
        if start < 0 or count < 1 or start + count > global_batch:
            raise ValueError(f"images {start} to {start + count} are not within a batch of {global_batch}")
        self.seed = seed
        self.step = step
        self.global_batch = global_batch
        self.start = start
        self.count = count
        self._generators: dict[str, torch.Generator] = {}

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._draw(lambda size, generator: torch.rand(size, generator=generator), shape, purpose, batch_axis)

    def randn(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._draw(lambda size, generator: torch.randn(size, generator=generator), shape, purpose, batch_axis)

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._draw(
            lambda size, generator: torch.randint(high, size, generator=generator), shape, purpose, batch_axis
        )

    def _draw(
        self,
        function: Callable[[list[int], torch.Generator], Tensor],
        shape: Sequence[int],
        purpose: str,
        batch_axis: int,
    ) -> Tensor:
        size = list(shape)
        if size[batch_axis] != self.count:
            raise ValueError(f"axis {batch_axis} of {size} must count the {self.count} images of this slice")
        size[batch_axis] = self.global_batch
        # Explicit CPU: the numbers must not depend on torch's default device.
        with torch.device("cpu"):
            whole = function(size, self._generator(purpose))
        return whole.narrow(batch_axis, self.start, self.count)

    def _generator(self, purpose: str) -> torch.Generator:
        if purpose not in self._generators:
            seed = derive_seed(self.seed, purpose, self.step)
            self._generators[purpose] = torch.Generator("cpu").manual_seed(seed)
        return self._generators[purpose]


class StackedGenerator:
    """One generator for each image, so that an image depends on its seed alone (EDM; seeds are taken modulo 2**32).

    seeds: one for each image. device: where the numbers are drawn; CPU and CUDA give different ones for a seed.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator(self.device).manual_seed(int(seed) % (1 << 32)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal tensor of the given shape, whose first axis counts the images."""
        if shape[0] != len(self):
            raise ValueError(f"{len(self)} seeds cannot fill a batch of {shape[0]}")
        size = list(shape[1:])
        return torch.stack([torch.randn(size, generator=g, dtype=dtype, device=self.device) for g in self._generators])

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal tensor of the shape and dtype of x."""
        return self.randn(x.shape, x.dtype).to(x.device)

    def randint(self, high: int) -> Tensor:
        """One integer 0 ... high - 1 for each image: (N,) int64."""
        draws = [torch.randint(high, (), generator=g, device=self.device) for g in self._generators]
        return torch.stack(draws)

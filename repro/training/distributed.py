"""Data parallel training: what a process needs to know of the others, and the few things that they do together.

The global batch and all its draws are a function of (seed, step); a process computes its slice of the images, and the
gradients are summed. One process without any of this is the world of size 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from repro.errors import UsageError

WAIT_HOURS = 12
"""How long processes wait for each other: the first one evaluates while the others wait."""


@dataclasses.dataclass(frozen=True)
class World:
    """rank: this process, 0 to size - 1; size: processes; local_rank: this process among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, batch: int) -> tuple[int, int]:
        """(start, count) of this process's images of a global batch: as even as possible, in order of rank.

        Raises:
            UsageError: fewer images than processes.
        """
        if batch < self.size:
            raise UsageError(f"a batch of {batch} images cannot be shared by {self.size} processes")
        start = self.rank * batch // self.size
        return start, (self.rank + 1) * batch // self.size - start

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; all of them get the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        if self.size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum_(torch.tensor(float(flag), device=device)))

    def from_first(self, value: Any) -> Any:
        """A picklable value of the first process, in all of them; the others' argument is not looked at."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, value: Any) -> None:
        """Raise unless a value is the same in all processes."""
        if self.from_first(value) != value:
            raise UsageError(f"process {self.rank} has another state than process 0 (do all see the same folders?)")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def from_environment() -> World:
    """The world that torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK), or SLURM's of a multi-task step, describe."""
    env = os.environ
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in env and size in env:
            try:
                world = World(int(env[rank]), int(env[size]), int(env.get(local, "0")))
            except ValueError:
                raise UsageError(f"{rank}, {size} and {local} must be numbers") from None
            if not 0 <= world.rank < world.size:
                raise UsageError(f"{rank} {world.rank} is not below {size} {world.size}")
            if world.size > 1 and "MASTER_ADDR" not in env:
                raise UsageError(f"{size} is {world.size}, but MASTER_ADDR is not set: start it with torchrun")
            return world
    return World()


@contextlib.contextmanager
def joined(world: World, device: str) -> Iterator[World]:
    """The process group of a world (NCCL on GPUs, else gloo), for as long as the context lasts."""
    if world.size == 1:
        yield world
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", rank=world.rank, world_size=world.size, timeout=datetime.timedelta(hours=WAIT_HOURS)
    )
    try:
        yield world
    finally:
        dist.destroy_process_group()

"""Reading ahead: threads compute the batches that will be asked for next. They change when, never what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

Request = tuple[int, int]
"""(position, count)."""
Follow = Callable[[int, int], Request]
Batch = tuple[Tensor, Tensor | None]


def contiguous(position: int, count: int) -> Request:
    """One process that asks for equal pieces: the next begins where this one ends."""
    return position + count, count


def rank_slices(batch: int, world: int = 1, rank: int = 0, micro_batch: int = 0) -> Follow:
    """What a rank asks for next, of global batches that are dealt as evenly as can be and cut into micro-batches.

    Rank r takes images floor(r B / W) .. floor((r + 1) B / W) - 1 of each batch of B images, as training does.
    """
    first, end = rank * batch // world, (rank + 1) * batch // world
    size = micro_batch or end - first

    def follow(position: int, count: int) -> Request:
        step, place = divmod(position + count - 1, batch)
        left = end - place - 1
        if left > 0:
            return position + count, min(size, left)
        return (step + 1) * batch + first, min(size, end - first)

    return follow


class Prefetcher:
    """Keeps the next batches ready.

    Args:
        compute: (position, count) -> batch, from any thread.
        workers: threads.
        follow: guesses the next request; a wrong guess costs time, nothing else.
    """

    def __init__(self, compute: Callable[[int, int], Batch], workers: int, follow: Follow) -> None:
        self._compute = compute
        self._follow = follow
        self._depth = 2 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
        self._ready: dict[Request, Future[Batch]] = {}

    def get(self, position: int, count: int) -> Batch:
        """The batch; an error of the thread that read it is raised here."""
        future = self._ready.pop((position, count), None)
        upcoming = []
        request = (position, count)
        for _ in range(self._depth):
            request = self._follow(*request)
            upcoming.append(request)
        for request in set(self._ready) - set(upcoming):
            self._ready.pop(request).cancel()
        for request in upcoming:
            if request not in self._ready:
                self._ready[request] = self._pool.submit(self._compute, *request)
        return self._compute(position, count) if future is None else future.result()

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ready.clear()

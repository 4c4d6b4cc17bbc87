"""Scoring a run: seeds -> images -> uint8 -> features, in fixed blocks, on any number of ranks, restartable in between.

The range of seeds is cut into blocks that do not depend on the number of ranks. A rank makes every world-size-th block
and leaves its features (or its images, where a protocol wants all of them at once) as one file beside the record; rank
0 waits for all files and scores them in the order of the seeds. So an interrupted evaluation goes on where it stopped,
the score has the same bits on any number of ranks, and no rank holds more than one block of images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repro import assets
from repro.errors import CheckFailed, CorruptData, UsageError
from repro.experiment import Evaluation, Execution
from repro.files import make_folder, write_atomic
from repro.identity import SHORT, digest
from repro.metrics.backends import Extractor
from repro.metrics.feature_protocol import FeatureProtocol
from repro.metrics.measure import BLOCK
from repro.metrics.quantise import beyond_truncation
from repro.metrics.weights import StrPath
from repro.sampling import Network, generate
from repro.training.distributed import World

Block = dict[str, npt.NDArray[Any]]
GRID_IMAGES = 100
POLL_SECONDS = 0.5
SAMPLES_FILE = "samples.tar"


@dataclasses.dataclass(frozen=True)
class Scored:
    """scores: metric -> value; nfe: denoiser calls an image, on average; images: the first ones, for a picture; seconds
    of sampling and of scoring."""

    scores: dict[str, float]
    nfe: float
    images: Tensor
    seconds: dict[str, float]


@dataclasses.dataclass
class Scoring:
    """One evaluation of one range.

    Args:
        net: denoiser with the averaged weights, in eval mode.
        evaluation: sampler, protocol and number of samples.
        first_seed: seeds first_seed to first_seed + num_samples - 1.
        folder: where the record will lie.
        identity: what the images depend on beside the seeds; files of another identity are not used.
        reference: real images (N, C, R, R) uint8, for protocols that compare with them.
        weights_dir: folder of metric weights.
        execution: settled settings.
        progress: called with (images done by this rank, images of this rank).
        stop: called after every sampler step; raises to end.
        world: the processes that score together; they share the folder of the run.
        guide: the network that guides the sampler, likewise, or None.
        decode: (N, C, h, w) network output -> uint8 images, where the network's are latents; None for pixels.
        wait_seconds: how long rank 0 waits for a block that another rank does not deliver.
    """

    net: Network
    evaluation: Evaluation
    first_seed: int
    folder: Path
    identity: str
    reference: Tensor
    weights_dir: StrPath | None
    execution: Execution
    progress: Callable[[int, int], None] = lambda done, total: None
    stop: Callable[[], None] = lambda: None
    world: World = World()
    guide: Network | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    wait_seconds: float = 3600.0

    def __post_init__(self) -> None:
        protocol = self.evaluation.protocol
        self._protocol = protocol if isinstance(protocol, FeatureProtocol) else None
        if self._protocol:
            self._protocol.check_images(self.evaluation.num_samples)
            self._protocol.load(self.weights_dir)  # refuse before the work
        # where images are kept whole, blocks are the batches in which they were always sampled
        self.block = BLOCK if self._protocol else self.execution.sample_batch

    @property
    def partial(self) -> Path:
        """The folder of finished blocks. What is in it follows from its name."""
        seeds = [self.first_seed, self.evaluation.num_samples, self.block, self.execution.keep_samples]
        name = digest([self.identity, seeds, self.evaluation.protocol.quantise, assets.sources_sha256()])
        return self.folder / f"partial-{name[:SHORT]}"

    def run(self) -> Scored | None:
        """Make this rank's blocks; on rank 0 score all of them. None on the other ranks."""
        started = time.monotonic()
        partial = make_folder(self.partial)
        extractor = self._protocol.open(self.weights_dir, self.execution.device) if self._protocol else None
        starts = range(0, self.evaluation.num_samples, self.block)
        mine = starts[self.world.rank :: self.world.size]
        total = sum(self._count(start) for start in mine)
        done = 0
        for start in mine:
            if read_block(partial, start, self._count(start)) is None:
                self.stop()
                write_block(partial, start, self._make(start, extractor, done, total))
            done += self._count(start)
            self.progress(done, total)
        if self.world.rank:
            return None
        for start in starts:
            self._wait(partial, start)
        sampled = time.monotonic()
        scores = self._score(partial, starts, extractor)
        if self.execution.keep_samples:
            write_samples(self.folder / SAMPLES_FILE, (self._read(partial, start)["images"] for start in starts))
        seconds = {"sampling": sampled - started, "scoring": time.monotonic() - sampled}
        nfe = float(np.concatenate([self._read(partial, start)["nfe"] for start in starts]).mean())
        return Scored(scores, nfe, self._first_images(partial, starts), seconds)

    def clean(self) -> None:
        """Remove the finished blocks, those of other identities too: the record is written."""
        for folder in self.folder.glob("partial-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _count(self, start: int) -> int:
        return min(self.block, self.evaluation.num_samples - start)

    def _make(self, start: int, extractor: Extractor | None, done: int, total: int) -> Block:
        """Sample one block; its images, or their features (and the images that somebody wants to see)."""
        first, protocol = self.first_seed + start, self.evaluation.protocol
        sampler = self.evaluation.sampler
        images, nfe = generate(
            self.net,
            sampler if self.guide is None else functools.partial(sampler, guide=self.guide),
            range(first, first + self._count(start)),
            labels=protocol.labels,  # type: ignore[arg-type]  # checked by the protocol
            batch=min(self.execution.sample_batch, self.block),
            device=self.execution.device,
            quantise=self.decode or beyond_truncation(protocol.quantise),
            progress=lambda part, _: self.progress(done + part, total),
            stop=self.stop,
        )
        evaluations = np.full(len(images), nfe)
        if extractor is None:
            return {"images": images.numpy(), "nfe": evaluations}
        block: Block = {**extractor(images), "nfe": evaluations}
        shown = len(images) if self.execution.keep_samples else max(0, GRID_IMAGES - start)
        return {**block, "images": images[:shown].numpy()}

    def _wait(self, partial: Path, start: int) -> None:
        """Until a block of another rank is there. CheckFailed after `wait_seconds` without it."""
        deadline = time.monotonic() + self.wait_seconds
        while not block_path(partial, start).exists():
            self.stop()
            if time.monotonic() > deadline:
                rank = start // self.block % self.world.size
                raise CheckFailed(
                    f"{block_path(partial, start)}: rank {rank} did not deliver it in {self.wait_seconds:g} s; "
                    "the same command continues"
                )
            time.sleep(POLL_SECONDS)

    def _read(self, partial: Path, start: int) -> Block:
        block = read_block(partial, start, self._count(start))
        if block is None:
            raise CorruptData(f"{block_path(partial, start)}: damaged; remove it, the same command makes it again")
        return block

    def _score(self, partial: Path, starts: range, extractor: Extractor | None) -> dict[str, float]:
        blocks = (self._read(partial, start) for start in starts)
        if self._protocol is not None and extractor is not None:
            count = self.evaluation.num_samples
            features = ({layer: block[layer] for layer in self._protocol.layers} for block in blocks)
            return self._protocol.finish(features, count, extractor, self.weights_dir)
        images = torch.cat([torch.from_numpy(block["images"]) for block in blocks])
        return self.evaluation.protocol.score(images, self.reference, self.weights_dir, self.execution.device)

    def _first_images(self, partial: Path, starts: range) -> Tensor:
        wanted = [start for start in starts if start < GRID_IMAGES]
        images = np.concatenate([self._read(partial, start)["images"] for start in wanted])
        return torch.from_numpy(images[:GRID_IMAGES])


def identity_of(evaluation_hash: str, *nets: nn.Module) -> str:
    """What generated images depend on beside their seeds: the configuration, and the weights themselves."""
    weights = hashlib.sha256()
    for name, value in (item for net in nets for item in sorted(net.state_dict().items())):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest([evaluation_hash, weights.hexdigest()])


def block_path(partial: Path, start: int) -> Path:
    """The file of the block whose first image is number `start`."""
    return partial / f"block-{start:08d}.npz"


def write_block(partial: Path, start: int, block: Block) -> None:
    """Write one block, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **block)  # type: ignore[arg-type]
    write_atomic(block_path(partial, start), buffer.getvalue())


def read_block(partial: Path, start: int, count: int) -> Block | None:
    """One block; None where there is none, or a damaged one. `images` may be fewer than `count`."""
    try:
        with np.load(block_path(partial, start), allow_pickle=False) as archive:
            block: Block = {name: archive[name] for name in archive.files}
    except Exception:  # zipfile, zlib and numpy raise many kinds for a damaged file
        return None
    whole = [name for name in block if name != "images" or block.keys() == {"images", "nfe"}]
    return block if "nfe" in whole and all(len(block[name]) == count for name in whole) else None


def write_samples(path: Path, batches: Iterator[npt.NDArray[np.uint8]]) -> None:
    """Generated images as one tar of chunk records (`x.npy` uint8 (n, C, R, R)), in the order of their seeds."""
    import webdataset as wds  # heavy

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream, wds.TarWriter(stream, encoder=False, compress=False, mtime=0) as writer:
            for index, batch in enumerate(batches):
                buffer = io.BytesIO()
                np.save(buffer, np.ascontiguousarray(batch), allow_pickle=False)
                writer.write({"__key__": f"samples-{index:06d}", "x.npy": buffer.getvalue()})
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)

"""Images/s of our loader against a DataLoader over a zip of PNGs and the plain read of the same bytes, in one run.

python benchmarks/data.py [IMAGES]

Compare the numbers of one run only; the machine and what else it does decide the rest.
"""

from __future__ import annotations

import collections
import functools
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from repro.data.manifest import Manifest
from repro.data.preparing import Job, Part, SetPlan, images_a_shard, write_set
from repro.data.reading import read_shards
from repro.data.stores import MemoryStore, ShardStore, Store
from repro.data.stream import ImageStream, View

BATCH = 256
SECONDS = 1.0
ROUNDS = 3
TARGET = 5000  # images/s that a GPU may need


def pictures(count: int, resolution: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(count, 3, R, R) uint8 with the smoothness of photographs, so that PNG has its usual work."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8 * resolution, 8 * resolution, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    scene = np.clip((scene - scene.mean()) * 6 + 128 + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
    corners = rng.integers(0, 7 * resolution, (count, 2))
    crops = np.stack([scene[y : y + resolution, x : x + resolution] for y, x in corners])
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2))


class ZipOfPngs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """One PNG an image in a zip, decoded when it is asked for, as the papers' code has its data."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.archive: zipfile.ZipFile | None = None  # opened by its first use, in each worker

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.archive is None:
            self.archive = zipfile.ZipFile(self.path)
        with self.archive.open(f"{index:08d}.png") as stream:
            image = np.asarray(Image.open(io.BytesIO(stream.read())))
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), 0


def write_zip(images: np.ndarray[Any, Any], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
            archive.writestr(f"{number:08d}.png", buffer.getvalue())


def part_of(values: np.ndarray[Any, Any], start: int, stop: int) -> Part:
    return Part(values[start:stop], np.zeros(stop - start, dtype=np.int64))


def write(values: np.ndarray[Any, Any], folder: Path) -> Manifest:
    size = images_a_shard(values[0].nbytes)
    jobs = [
        Job(n, min(size, len(values) - s), functools.partial(part_of, values, s, min(s + size, len(values))))
        for n, s in enumerate(range(0, len(values), size))
    ]
    plan = SetPlan("bench", 0, values.shape[2], values.shape[1], {}, jobs, 0, values.dtype.name)
    return write_set(plan, folder)


class Rate(NamedTuple):
    """Images a second, and images a second of processor time (all threads of this process, no child process)."""

    wall: float
    cpu: float


def rate(step: Callable[[], int]) -> Rate:
    """The rate of a function that returns how many images it gave, over about a second, after one call."""
    step()
    started, used, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < SECONDS:
        done += step()
    return Rate(done / (time.perf_counter() - started), done / (time.process_time() - used))


def batches(stream: ImageStream) -> Callable[[], int]:
    position = iter(range(0, 1 << 40, BATCH))
    return lambda: len(stream.batch(next(position), BATCH)[0])


def loader_batches(loader: Any) -> Callable[[], int]:
    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    iterator = endless()
    return lambda: len(next(iterator)[0])


def plain_read(folder: Path) -> Callable[[], int]:
    """Read every shard of a folder from end to end, and nothing else."""
    from repro.data.manifest import load_manifest

    manifest = load_manifest(folder)

    def step() -> int:
        for shard in manifest.shards:
            with open(folder / shard.name, "rb", buffering=0) as stream:
                while stream.read(1 << 22):
                    pass
        return manifest.count

    return step


def measure(title: str, values: np.ndarray[Any, Any], root: Path, form: str = "pixels") -> dict[str, Rate]:
    """Print and return images/s of each way to read one set."""
    folder = root / title
    manifest = write(values, folder)
    view = View(labelled=False, form=form)
    rounds: dict[str, list[Rate]] = collections.defaultdict(list)
    stores: dict[str, Store] = {"indexed shards": ShardStore(folder, manifest)}
    if form == "pixels":
        stores["in memory"] = MemoryStore(*read_shards(folder, manifest))
        write_zip(values, root / f"{title}.zip")
    for _ in range(ROUNDS):  # in turns, so that what else the machine does meets all alike
        if form == "pixels":
            for workers in (0, 4):
                dataset = ZipOfPngs(root / f"{title}.zip", len(values))
                loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers)
                rounds[f"zip of PNGs, DataLoader, {workers} workers"].append(rate(loader_batches(loader)))
        for name, store in stores.items():
            for workers in (0, 4):
                stream = ImageStream.over(store, manifest, 0, view)
                stream.read_ahead(workers)
                rounds[f"ours, {name}, {workers} workers"].append(rate(batches(stream)))
                stream.read_ahead(0)
        rounds["plain read of the shards"].append(rate(plain_read(folder)))
    found = {name: Rate(*map(statistics.median, zip(*rates, strict=True))) for name, rates in rounds.items()}
    plain = found["plain read of the shards"].wall
    print(title)
    for name, value in found.items():
        cpu = "" if "DataLoader, 4" in name else f" {value.cpu:11,.0f} a CPU s"
        print(f"  {name:38} {value.wall:11,.0f} images/s {value.wall / plain:6.3f} of the plain read{cpu}")
    return found


def main() -> None:
    """Print every rate and the ratios that matter."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # four workers on fewer cores
    print(f"{count} images, batches of {BATCH} in random order, {os.cpu_count()} cores, warm page cache")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        small = measure("32x32 RGB", pictures(count, 32), root)
        large = measure("64x64 RGB", pictures(count, 64), root)
        moments = rng.standard_normal((count // 8, 8, 64, 64), dtype=np.float32)
        raw = measure("64x64x4 latents as moments (edm2)", moments, root, "edm2")
        scaled = measure("64x64x4 latents as samples (dit)", moments[:, :4], root, "dit")
    baseline = small["zip of PNGs, DataLoader, 0 workers"]
    for name in ("in memory", "indexed shards"):
        ours = small[f"ours, {name}, 0 workers"]
        print(
            f"32x32, one process, {name}: {ours.wall / baseline.wall:.1f} times the zip of PNGs (5 wanted), "
            f"{ours.cpu / baseline.cpu:.1f} times by CPU time"
        )
    for title, rates in (("64x64", large), ("latents (edm2)", raw), ("latents (dit)", scaled)):
        value = rates["ours, indexed shards, 4 workers"]
        print(
            f"{title}, 4 workers: {value.wall:,.0f} images/s here ({TARGET:,} wanted); {TARGET / value.cpu:.2f} of 4 "
            f"cores are busy at {TARGET:,} images/s"
        )


if __name__ == "__main__":
    main()

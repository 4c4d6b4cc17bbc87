"""Sources -> folders of shards: on all cores, stopped and continued at will, whole or not at all.

Shards are written one by one into a staging folder beside the final one, whose name follows from the plan (source,
options, sizes); the same command finds there what an earlier one finished. The staging folder becomes the final one by
a rename when every shard is there.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.data import cifar
from repro.data.images import crop_function, read_image
from repro.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, write_manifest, write_synced
from repro.data.members import Member, list_members, read_member
from repro.data.shards import (
    CHUNK_BYTES,
    CHUNK_IMAGES,
    SHARD_BYTES,
    Array,
    check_manifest,
    publish,
    write_indexed_shard,
)
from repro.data.sources import Cifar10, ImageFiles, Labels, Source
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.files import remove_leftovers, write_json

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

LAYOUT = 1  # of staging folders: raised when what a plan gives changes


@dataclasses.dataclass(frozen=True)
class Part:
    """What goes into one shard.

    Args:
        values: (n, C, R, R), any dtype.
        labels: (n,) int64.
        lines: a line for each file of the source that was read, as `sha256sum` prints it.
        skipped: names of files that could not be used.
        contexts: of each image (k, ...), or None.
    """

    values: Array
    labels: Labels
    lines: Sequence[str] = ()
    skipped: Sequence[str] = ()
    contexts: Sequence[Array] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to be: its number, images expected, and the function that reads them."""

    number: int
    count: int
    load: Callable[[], Part]


@dataclasses.dataclass(frozen=True)
class SetPlan:
    """What a folder of shards is to hold; `key` is all that decides its bytes beside the other fields.

    files: further files of the folder, whose sha256 the options pin.
    """

    name: str
    num_classes: int
    resolution: int
    channels: int
    options: dict[str, Any]
    jobs: Sequence[Job]
    key: Any
    dtype: str = "uint8"
    context_shape: tuple[int, ...] = ()
    context_dtype: str = ""
    source_sha256: str = ""
    files: Sequence[tuple[str, bytes]] = ()

    @property
    def digest(self) -> str:
        """Names the staging folder."""
        text = json.dumps([LAYOUT, self.name, self.resolution, self.channels, self.options, self.key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def images_a_shard(image_bytes: int) -> int:
    """How many images a shard holds by default: about 64 MB, in whole records."""
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
    return max(1, SHARD_BYTES // (image_bytes * chunk)) * chunk


def prepare_images(
    source: ImageFiles,
    path: Path,
    out_dir: Path,
    resolution: int,
    channels: int = 3,
    *,
    convert: bool = False,
    skip_bad: bool = False,
    shard_images: int | None = None,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Prepare a data set from a folder or zip of images, unless `out_dir` holds it already.

    Args:
        source: which images, how labelled and how cropped.
        path: the folder or zip.
        out_dir: the folder of shards to be.
        resolution, channels: R and C.
        convert: turn colour modes without a stated conversion into RGB (or grey) instead of refusing them.
        skip_bad: leave out files that cannot be used, and name them in the manifest.
        shard_images: images a shard, None for about 64 MB.
        workers: processes.

    Raises:
        MissingPrerequisite: there is no source. CorruptData: it is not the data set, or a file of it is unusable.
        UsageError: the disk is full or cannot be written; what is finished is kept for the next call.
    """
    crop_function(source.crop)
    if out_dir.exists():
        manifest = load_manifest(out_dir)
        check_manifest(manifest, source, resolution, channels, out_dir, counted=not manifest.skipped)
        return manifest
    members = source.select(path, _members(source, path))
    _check_count(source, path, members)
    size = shard_images or images_a_shard(channels * resolution * resolution)
    load = functools.partial(
        _read_images, path, crop=source.crop, resolution=resolution, channels=channels, convert=convert, skip=skip_bad
    )
    jobs = [
        Job(number, len(members[start : start + size]), functools.partial(load, members[start : start + size]))
        for number, start in enumerate(range(0, len(members), size))
    ]
    options = {**source.options, **({"convert": True} if convert else {})}
    listing = hashlib.sha256()
    for member in members:
        listing.update(f"{member}\n".encode())
    key = [size, skip_bad, listing.hexdigest()]
    plan = SetPlan(source.name, source.num_classes, resolution, channels, options, jobs, key)
    return write_set(plan, out_dir, workers, progress)


def prepare_cifar10(
    source: Cifar10, path: Path | None, out_dir: Path, shard_images: int | None = None, cache: Path | None = None
) -> Manifest:
    """Prepare CIFAR-10's training set from torchvision's archive; it is downloaded where `path` is None.

    Raises: as `prepare_images`.
    """
    if out_dir.exists():
        manifest = load_manifest(out_dir)
        check_manifest(manifest, source, 32, 3, out_dir)
        return manifest
    images, labels, sha256 = cifar.read_training_set(cifar.find_archive(path, cache or out_dir.parent / "downloads"))
    if source.count is not None and len(images) != source.count:
        raise CorruptData(f"cifar10: {len(images)} images found, {source.count} expected")
    size = shard_images or images_a_shard(images[0].nbytes)
    starts = range(0, len(images), size)
    parts = [Part(images[start : start + size], labels[start : start + size]) for start in starts]
    jobs = [Job(number, len(part.labels), functools.partial(_same, part)) for number, part in enumerate(parts)]
    plan = SetPlan(source.name, 10, 32, 3, dict(source.options), jobs, [size, sha256], source_sha256=sha256)
    return write_set(plan, out_dir, 1)


def write_set(
    plan: SetPlan, out_dir: Path, workers: int = 1, progress: Progress = lambda done, total: None
) -> Manifest:
    """Do the jobs that are not done yet, then publish the folder.

    Args:
        workers: processes; with 1 the jobs run in this one and need not be picklable.

    Returns:
        the manifest of `out_dir`.
    """
    staging = out_dir.with_name(f".{out_dir.name}.{plan.digest[:12]}.preparing")
    try:
        for folder in (staging / "shards", staging / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
        _run_jobs(plan, staging, workers, progress)
        parts = [_finished(staging, job) for job in plan.jobs]
        remove_leftovers(staging / "shards")  # of writers that were killed
        for name, content in plan.files:
            write_synced(staging / "shards" / name, content)
        write_manifest(staging / "shards", _manifest(plan, [part for part in parts if part is not None]))
        publish(staging / "shards", out_dir)
    except OSError as error:
        if (out_dir / MANIFEST_NAME).is_file():  # another process with the same plan was first
            return load_manifest(out_dir)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise UsageError(
            f"cannot prepare {out_dir}: {reason} (what is finished waits in {staging.name}; the same command continues)"
        ) from error
    shutil.rmtree(staging, ignore_errors=True)
    return load_manifest(out_dir)


def _run_jobs(plan: SetPlan, staging: Path, workers: int, progress: Progress) -> None:
    total = sum(job.count for job in plan.jobs)
    left = [job for job in plan.jobs if _finished(staging, job) is None]
    done = total - sum(job.count for job in left)
    progress(done, total)
    run = functools.partial(_run_job, plan.name, plan.num_classes, staging)
    for count in _each(run, left, min(workers, len(left))):
        done += count
        progress(done, total)


def _each(run: Callable[[Job], int], jobs: Sequence[Job], workers: int) -> Iterable[int]:
    """Results as they come. An error or Ctrl-C waits for the shards in work, and starts no other."""
    if workers <= 1:
        yield from map(run, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of a progress bar, half
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        for future in concurrent.futures.as_completed([pool.submit(run, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _run_job(name: str, num_classes: int, staging: Path, job: Job) -> int:
    """Read, write, and leave the note that says so; returns the images expected of the job."""
    part = job.load()
    stem = f"{name}-{job.number:05d}".replace(":", "-").replace(".", "-")
    shard = None
    if len(part.labels):
        labels = part.labels if num_classes else np.zeros(len(part.labels), dtype=np.int64)
        shard = write_indexed_shard(staging / "shards" / f"{stem}.tar", part.values, labels, part.contexts)
    note = {
        "shard": None if shard is None else dataclasses.asdict(shard),
        "class_counts": np.bincount(part.labels, minlength=num_classes).tolist() if num_classes else [],
        "lines": list(part.lines),
        "skipped": list(part.skipped),
    }
    write_json(_note_path(staging, job), note)
    return job.count


def _note_path(staging: Path, job: Job) -> Path:
    return staging / "parts" / f"{job.number:05d}.json"


def _finished(staging: Path, job: Job) -> dict[str, Any] | None:
    """The note of a job that is done, or None. A shard of another size than noted is made anew."""
    try:
        note: dict[str, Any] = json.loads(_note_path(staging, job).read_bytes())
        shard = note["shard"] and Shard(**note["shard"])
        if shard:
            if (staging / "shards" / shard.name).stat().st_size != shard.bytes:
                return None
            if not (staging / "shards" / shard.index_name).is_file():
                return None
        return {**note, "shard": shard}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _manifest(plan: SetPlan, notes: Sequence[dict[str, Any]]) -> Manifest:
    if len(notes) != len(plan.jobs):  # somebody removed files meanwhile
        raise UsageError(f"{plan.name}: {len(plan.jobs) - len(notes)} shards vanished; run the same command again")
    shards = tuple(note["shard"] for note in notes if note["shard"])
    if not shards:
        raise CorruptData(f"{plan.name}: not one usable image")
    lines = [line for note in notes for line in note["lines"]]
    counts = [sum(column) for column in zip(*(note["class_counts"] for note in notes), strict=True)]
    return Manifest(
        name=plan.name,
        count=sum(shard.count for shard in shards),
        num_classes=plan.num_classes,
        class_counts=tuple(counts),
        resolution=plan.resolution,
        channels=plan.channels,
        options=plan.options,
        shards=shards,
        dtype=plan.dtype,
        source_sha256=plan.source_sha256 or hashlib.sha256("".join(lines).encode()).hexdigest(),
        skipped=tuple(name for note in notes for name in note["skipped"]),
        context_shape=plan.context_shape,
        context_dtype=plan.context_dtype,
    )


def _members(source: Source, path: Path) -> list[Member]:
    if not path.exists():
        number = "all images" if source.count is None else f"{source.count:,} images"
        classes = f" in {source.num_classes:,} class folders" if source.num_classes else ""
        raise MissingPrerequisite(
            f"{source.name}: nothing at {path}; {number}{classes} expected, as a folder or zip "
            "(`repro data list` says where to obtain them)"
        )
    return list_members(path)


def _check_count(source: Source, path: Path, members: Sequence[Member]) -> None:
    if not members:
        raise CorruptData(f"{path}: no images of {source.name} found")
    if source.count is not None and len(members) != source.count:
        raise CorruptData(
            f"{path}: {len(members)} images of {source.name} found, {source.count} expected (first "
            f"{members[0].name}, last {members[-1].name}); --count {len(members)} takes them as another data set"
        )


def _read_images(
    path: Path,
    members: Sequence[Member],
    *,
    crop: str,
    resolution: int,
    channels: int,
    convert: bool,
    skip: bool,
) -> Part:
    """Read and crop the images of one shard. Raises CorruptData, naming the file, unless it may be skipped."""
    images, labels, lines, skipped = [], [], [], []
    for member in members:
        digest = "unreadable"
        try:
            content = read_member(path, member.name)
            digest = hashlib.sha256(content).hexdigest()
            try:
                image = read_image(content, crop, resolution, channels, convert)
            except CorruptData as error:
                raise CorruptData(f"{path}: {member.name}: {error} (--skip-bad leaves it out)") from error
            images.append(image)
            labels.append(member.label)
        except CorruptData:
            if not skip:
                raise
            skipped.append(member.name)
        lines.append(f"{digest}  {member.name}\n")
    shape = (len(images), channels, resolution, resolution)
    values = np.stack(images) if images else np.zeros(shape, dtype=np.uint8)
    return Part(values, np.array(labels, dtype=np.int64), lines, skipped)


def _same(part: Part) -> Part:
    return part

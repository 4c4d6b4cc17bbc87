"""`repro data prepare|verify|info|list`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from repro.data.catalogue import CATALOGUE, names
from repro.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from repro.data.preparing import Progress, prepare_cifar10, prepare_images
from repro.data.shards import prepare as prepare_embedded
from repro.data.sources import (
    FFHQ,
    AFHQv2,
    CelebA,
    Cifar10,
    Coco,
    Digits,
    ImageFiles,
    ImageFolder,
    ImageNet,
    folder_name,
)
from repro.errors import CorruptData, UsageError
from repro.files import make_folder
from repro.suggest import suggest

PICTURES = 100  # in the grid of `info`
LINE_SECONDS = 10.0


def prepare(options: argparse.Namespace) -> int:
    """Prepare one data set; the second time it says that it is there."""
    if options.name not in names():
        raise UsageError(f"no data set {options.name!r}{suggest(options.name, names())} (see `repro data list`)")
    root = make_folder(options.out or Path(os.environ.get("REPRO_DATA") or "data"))
    if options.source is not None and _is_remote(options.source):
        return _link(options, root)
    with _progress(f"preparing {options.name}") as progress:
        folder, manifest, there = _prepare(options, root, progress)
    state = "was prepared before" if there else "prepared"
    print(f"{folder}: {state}: {_counts(manifest)}, {len(manifest.shards)} shards, sha256 {manifest.sha256}")
    if manifest.skipped:
        print(f"left out {len(manifest.skipped)} unusable files, first {manifest.skipped[0]}; the manifest names all")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check every shard and index of a folder, or of all sets in it; one line for each thing that is wrong."""
    from repro.data.verify import verify_folder

    wrong = 0
    for folder in _sets(options.folder):
        manifest = load_manifest(folder)
        with _progress(f"verifying {folder.name}") as progress:
            problems = verify_folder(folder, progress)
        for problem in problems:
            print(problem)
        wrong += len(problems)
        if not problems:
            print(f"{folder}: all {len(manifest.shards)} shards are what the manifest says: {_counts(manifest)}")
    if wrong:
        raise CorruptData(f"{options.folder}: {wrong} of its files are not what was prepared")
    return 0


def info(options: argparse.Namespace) -> int:
    """Print what a folder, or every set in it, holds, and write a grid of its images."""
    folders = _sets(options.folder)
    if options.picture and len(folders) > 1:
        raise UsageError(f"{options.folder} holds {len(folders)} sets; --picture is for one")
    described = [_describe(folder, options.picture) for folder in folders]
    if options.json:
        print(json.dumps(described if len(described) > 1 else described[0], indent=1))
        return 0
    for folder, facts in zip(folders, described, strict=True):
        print(folder)
        for key, value in facts.items():
            print(f"  {key:16} {_short(value)}")
    return 0


def _sets(folder: Path) -> list[Path]:
    """The folder itself, or the prepared sets in it."""
    if not (folder / MANIFEST_NAME).is_file() and folder.is_dir():
        inner = sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST_NAME}"))
        if inner:
            return inner
    return [folder]


def _describe(folder: Path, picture: Path | None) -> dict[str, object]:
    manifest = load_manifest(folder)
    return {
        "name": manifest.name,
        "count": manifest.count,
        "num_classes": manifest.num_classes,
        "class_counts": list(manifest.class_counts),
        "stored": f"{manifest.dtype} {manifest.channels}x{manifest.resolution}x{manifest.resolution}",
        "options": manifest.options,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "skipped": list(manifest.skipped),
        "source_sha256": manifest.source_sha256,
        "manifest_sha256": manifest.sha256,
        "picture": _picture(folder, manifest, picture),
    }


def list_sets(options: argparse.Namespace) -> int:
    """Print the catalogue."""
    if options.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in CATALOGUE], indent=1))
        return 0
    for entry in CATALOGUE:
        count = "any number of images" if entry.count is None else f"{entry.count:,} images"
        print(f"{entry.name}  {entry.title}")
        for key in ("used_by", "obtain", "licence", "size"):
            print(f"    {key.replace('_', ' '):9} {getattr(entry, key)}")
        print(f"    {'expected':9} {count}; {entry.hashes}")
        print(f"    {'command':9} {entry.command}")
    return 0


def _prepare(options: argparse.Namespace, root: Path, progress: Progress) -> tuple[Path, Manifest, bool]:
    """Folder, manifest, and whether it was there before."""
    if options.name == "latents":
        return _prepare_latents(options, root, progress)
    if options.name == "digits":
        resolution, channels = options.resolution or 8, options.channels or 1
        folder = root / folder_name("digits", resolution, channels)
        there = folder.exists()
        return folder, prepare_embedded(Digits(), resolution, channels, folder), there
    path = None if options.source is None else Path(options.source)
    if options.name == "cifar10":
        if options.resolution not in (None, 32) or options.channels not in (None, 3) or options.crop:
            raise UsageError("cifar10 is 32x32 RGB; it takes no --resolution, --channels or --crop")
        cifar10 = Cifar10() if options.count is None else Cifar10(options.count)
        folder = root / folder_name("cifar10", 32, 3)
        there = folder.exists()
        return folder, prepare_cifar10(cifar10, path, folder, options.shard_images), there
    source = image_source(options)
    if path is None:
        raise UsageError(f"{options.name} needs --source (`repro data list` says what)")
    resolution = source.default_resolution if options.resolution is None else options.resolution
    channels = 3 if options.channels is None else options.channels
    if resolution is None or resolution < 1 or channels not in (1, 3):
        raise UsageError(f"{options.name} needs --resolution R, 1 or more, and --channels 1 or 3")
    folder = root / folder_name(source.name, resolution, channels)
    there = folder.exists()
    manifest = prepare_images(
        source,
        path,
        folder,
        resolution,
        channels,
        convert=options.convert,
        skip_bad=options.skip_bad,
        shard_images=options.shard_images,
        workers=options.jobs or os.cpu_count() or 1,
        progress=progress,
    )
    return folder, manifest, there


def image_source(options: argparse.Namespace) -> ImageFiles:
    """The source of a name, with the crop, classes and count that were asked for.

    Raises:
        UsageError: an option that the data set does not have.
    """
    fixed: dict[str, type[FFHQ] | type[AFHQv2] | type[CelebA]] = {"ffhq": FFHQ, "afhqv2": AFHQv2, "celeba": CelebA}
    count = {} if options.count is None else {"count": options.count}
    if options.name in fixed:
        source: ImageFiles = fixed[options.name](**count)
    elif options.name in ("coco", "coco-val"):
        source = Coco(**count) if options.name == "coco" else Coco(options.count or 40504, "val2014")
    elif options.name == "imagenet":
        return ImageNet(**count, crop=options.crop or "dhariwal", num_classes=options.classes or 1000)
    else:
        return ImageFolder(options.count, options.crop or "center-crop", options.classes or 0)
    if options.crop not in (None, source.crop):
        raise UsageError(f"{options.name} is prepared with the crop {source.crop}; `folder` takes any other")
    if options.classes:
        raise UsageError(f"{options.name} is unlabelled; --classes does not belong to it")
    return source


def _prepare_latents(options: argparse.Namespace, root: Path, progress: Progress) -> tuple[Path, Manifest, bool]:
    if not (options.source and options.form and options.vae):
        raise UsageError("latents need --source (a folder of prepared images), --form and --vae")
    if bool(options.text_model) != bool(options.captions):
        raise UsageError("captions need both --captions and --text-model")
    from repro.data.latents import load_vae, prepare_latents
    from repro.data.text import Captions, load_text_model, read_captions

    images_dir = Path(options.source)
    captions = None
    if options.captions:
        texts = read_captions(options.captions, load_manifest(images_dir))
        captions = Captions(texts, load_text_model(options.text_model, options.device))
    before = set(root.iterdir())
    folder, manifest = prepare_latents(
        images_dir,
        root,
        options.form,
        load_vae(options.vae, options.device),
        flip=options.flip,
        captions=captions,
        shard_images=options.shard_images,
        progress=progress,
    )
    return folder, manifest, folder in before


def _is_remote(source: str) -> bool:
    from repro.data.remote import is_remote

    return is_remote(source)


def _link(options: argparse.Namespace, root: Path) -> int:
    """Let a folder stand for prepared shards elsewhere."""
    from repro.data.remote import fetch_manifest, link

    manifest = fetch_manifest(options.source)
    folder = root / folder_name(manifest.name, manifest.resolution, manifest.channels)
    link(options.source, folder)
    print(f"{folder}: stands for the shards at {options.source}: {_counts(manifest)}, sha256 {manifest.sha256}")
    return 0


def _picture(folder: Path, manifest: Manifest, path: Path | None) -> str:
    """Write the grid of images evenly spread over the set; what was written, or why nothing was."""
    from repro.data.remote import location
    from repro.data.stores import ShardStore
    from repro.pictures import write_grid

    if manifest.dtype != "uint8" or manifest.channels not in (1, 3):
        return "none: these are latents"
    if location(folder) is not None:
        return "none: the shards are elsewhere"
    store = ShardStore(folder, manifest)
    chosen = np.unique(np.linspace(0, manifest.count - 1, min(PICTURES, manifest.count)).round().astype(np.int64))
    path = path or Path(f"{folder.resolve().name}.png")
    write_grid(path, store.take(chosen)[0])
    return str(path)


def _counts(manifest: Manifest) -> str:
    classes = f" in {manifest.num_classes} classes" if manifest.num_classes else ""
    return f"{manifest.count:,} images{classes}, {manifest.channels}x{manifest.resolution}x{manifest.resolution}"


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    import rich.progress
    from rich.console import Console

    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Progress:
    """One line every `LINE_SECONDS`: images, percentage, images/s and the time left."""
    started = shown = time.monotonic()
    first: int | None = None  # a command that continues begins with what an earlier one did

    def show(done: int, total: int) -> None:
        nonlocal shown, first
        first = done if first is None else first
        now = time.monotonic()
        if now - shown < LINE_SECONDS:
            return
        shown = now
        rate = max(done - first, 1) / (now - started)
        left = (total - done) / rate
        line = f"{title}: {done:,} of {total:,} ({done / max(total, 1):.0%}), {rate:,.0f} images/s, {left:,.0f} s left"
        print(line, file=sys.stderr)

    return show

"""`repro import`: a published checkpoint as weights and bindings of ours, without running anything that is in it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro.errors import UsageError

SECONDS = 2.0
"""Between two lines of progress."""


def published_folder(options: argparse.Namespace) -> Path:
    """The folder of imported checkpoints: --published, $REPRO_PUBLISHED or ./published."""
    return getattr(options, "published", None) or Path(os.environ.get("REPRO_PUBLISHED", "published"))


def import_(options: argparse.Namespace) -> int:
    """Import one file; says what it is, where it is now, and what was not in it."""
    from repro.importers.importing import Wanted, default_folder, import_file

    wanted = Wanted(options.as_, _config(options.config), _images(options.kimg), options.std)
    path: Path = options.file
    out: Path = options.out or published_folder(options) / default_folder(path, options.as_)
    imported, new = import_file(path, out, options.sha256 or "", wanted, _progress(path.name))
    content = json.loads((imported.folder / "provenance.json").read_bytes())
    if options.json:
        print(json.dumps({**content, "folder": str(imported.folder), "new": new}, indent=1, sort_keys=True))
        return 0
    verb = "imported as" if new else "was imported before:"
    print(f"{content['source']}  {content['format']}, {content['class']}, {content['parameters']:,} parameters")
    print(f"{verb} {imported.folder}")
    for line in _remarks(content):
        print(line, file=sys.stderr)
    return 0


def _remarks(content: dict[str, Any]) -> list[str]:
    lines = []
    if content["known_as"] is None:
        lines.append(f"sha256 {content['sha256']}: not among the files whose digest is known, so nobody vouches for it")
    if content["kind"] == "live":
        lines.append("these are the live weights of training, not an average; the papers evaluate averages")
    if content["family"] == "edm2" and content["kind"] == "ema" and None in (content["nimg"], content["std"]):
        lines.append(
            "neither the images seen nor the width of the average is in such a file, and this one's name does not tell "
            "them: post-hoc averages need them (--as NAME-<kimg>-<std>.pkl, or --kimg and --std)"
        )
    return lines


def _config(text: str | None) -> dict[str, Any]:
    """Published constructor arguments as JSON, or of a file of JSON."""
    if text is None:
        return {}
    try:
        value = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config must be JSON, or a file of it: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("--config must be a JSON object of published constructor arguments")
    return value


def _images(kimg: int | None) -> int | None:
    if kimg is None:
        return None
    if kimg < 0:
        raise UsageError(f"--kimg must be 0 or more, not {kimg}")
    from repro.training.posthoc import published_nimg

    return published_nimg(kimg)


def _progress(title: str) -> Callable[[int, int], None]:
    """A line every few seconds of what takes that long."""
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= SECONDS:
            shown = time.monotonic()
            print(f"{title}: {done / max(total, 1):.0%}", file=sys.stderr)

    return show


def list_published(options: argparse.Namespace) -> int:
    """`repro list --published`: files, sizes, digests, and the cells that they belong to."""
    from repro.published import cells_of, files_of, published_files

    files = [(file, cells_of(file)) for file in published_files()]
    if options.table:
        files = [(file, own) for file, cells in files if (own := [c for c in cells if c.table == options.table])]
    if options.json:
        rows = [
            {**dataclasses.asdict(file), "sha256": file.sha256 or None, "cells": [c.name for c in cells]}
            for file, cells in files
        ]
        print(json.dumps(rows, indent=1))
        return 0
    for file, cells in files:
        digest = f"sha256 {file.sha256}" if file.sha256 else "sha256 not known"
        note = f"  ({file.note})" if file.note else ""
        print(f"{file.file}  {file.family}, about {file.nbytes / 1e6:,.0f} MB, {digest}{note}")
        for cell in cells:
            print(f"    {cell.name}{'' if file in files_of(cell) else ' (guide)'}")
    print("`repro import FILE` makes one of them usable, `repro reproduce TABLE --from-published` evaluates it")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the weights behind a cell's value, with a model card."""
    from repro.cells import resolve
    from repro.launch.export import choose
    from repro.launch.export import export as write
    from repro.results.collect import collect
    from repro.tables import load_table
    from repro.verbs.computing import computable_cell, folders

    cell = computable_cell(options.cell)
    where = folders(options, write=False)
    table = load_table(cell.table)
    (result,) = collect(table, options.scale, where.readable, [cell], options.gin, "trained").cells
    chosen = choose(table, result, resolve(cell, options.scale, options.gin), options.seed, where.readable)
    name = f"{cell.name.replace('/', '_')}.{options.scale}.seed{chosen.replicate.seed}"
    written = write(chosen, options.out or Path(name))
    if options.json:
        print((written.folder / "provenance.json").read_text(encoding="utf-8"), end="")
        return 0
    print(f"{written.source}: written to {written.folder}")
    return 0

"""Which cells of a command are evaluated from imported weights, and from which."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.cells import resolve
from repro.errors import MissingPrerequisite, UsageError
from repro.published import Imported, Wanted, find_imported, import_commands, imported_for, misfit, wanted
from repro.results.collect import Weights
from repro.tables import Cell
from repro.verbs.importing import published_folder

Given = dict[str, tuple[Imported, ...]]
"""Cell -> the imported weights of its network, and of its guide."""


def weights_of(options: argparse.Namespace) -> Weights:
    """Which weights count in a table: --from-published, --train, or what the paper evaluated."""
    published, train = getattr(options, "from_published", False), getattr(options, "train", False)
    if published and train:
        raise UsageError("--from-published evaluates imported weights, --train trains: give one of them")
    return "published" if published else "trained" if train else "auto"


def published_for(
    cells: Sequence[Cell], options: argparse.Namespace, bindings: Sequence[str], say: bool = False
) -> Given:
    """Cell -> the imported weights that are evaluated in its place: all with --from-published, else where the paper
    did so, at full scale.

    Raises:
        MissingPrerequisite: --from-published, and no cell has imported weights; says what to import.
    """
    which = weights_of(options)
    eligible = [c for c in cells if which == "published" or (which == "auto" and c.starred and options.scale == "full")]
    if not eligible:
        return {}
    folder = published_folder(options)
    known = find_imported(folder)
    found = {}
    for cell in eligible:
        if both := _averages(cell, options.scale, bindings, known, folder) or imported_for(cell, known):
            found[cell.name] = both
    commands = dict.fromkeys(import_commands(cell, known) for cell in eligible if cell.name not in found)
    missing = [command for command in commands if command]
    if which == "published" and not found:
        if not missing:
            raise UsageError("no published weights are known for these cells (`repro list --published`)")
        raise MissingPrerequisite(f"{folder} has no imported weights of these cells: {'; '.join(missing)}")
    if which == "published" and say:
        for command in missing:
            print(f"not imported, so not evaluated: {command}", file=sys.stderr)
    return found


def _averages(
    cell: Cell, scale: str, bindings: Sequence[str], known: Sequence[Imported], folder: Path
) -> tuple[Imported, ...]:
    """For a cell of post-hoc averages: snapshots of its network at its time, stored or reconstructed; else none."""
    resolved = resolve(cell, scale, bindings)
    legs = wanted(resolved)
    if any(leg.ema.name != "PostHocEMA" or leg.nimg is None for leg in legs):
        return ()
    found = []
    for leg in legs:
        candidates = [one for one in known if one.kind == "ema" and not misfit(leg.denoiser, None, None, one)]
        stored = [one for one in candidates if one.nimg == leg.nimg and one.std == leg.ema.args["std"]]
        found += stored[:1] or _reconstructed(leg, candidates, folder)
    return tuple(found) if len(found) == len(legs) else ()


def _reconstructed(leg: Wanted, candidates: Sequence[Imported], folder: Path) -> list[Imported]:
    """The average of a leg from snapshots of the widths that training tracks, up to its time; none if they are few."""
    std, tracked = leg.ema.args["std"], leg.ema.args["tracked"]
    taken = [one for one in candidates if one.std in tracked and (one.nimg or 0) <= (leg.nimg or 0)]
    if len(taken) < 2 or all(one.nimg != leg.nimg for one in taken):
        return []
    from repro.importers.posthoc import import_reconstruction

    try:
        return [import_reconstruction([one.folder for one in taken], std, folder)]
    except UsageError as error:
        print(f"not reconstructed from {len(taken)} imported snapshots: {error}", file=sys.stderr)
        return []

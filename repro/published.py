"""Published weights: the files that the papers' authors give, and the folders that `repro import` makes of them.

Reads CSV and JSON, imports no torch. An imported folder holds `weights.safetensors`, `config.gin` and
`provenance.json`; nothing but this module and `repro.importers.folders` knows that.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from repro import assets
from repro.cells import Resolved
from repro.config import Node
from repro.errors import CorruptData, UsageError
from repro.tables import Cell, load_table, table_names

PROVENANCE, WEIGHTS, CONFIG = "provenance.json", "weights.safetensors", "config.gin"
BARE = ("DiscreteDenoiser", "VPDenoiser")
"""Denoisers whose published files hold the network alone."""
Role = Literal["cells", "guides"]
FORM = 1
"""Version of the folder's form."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of `tables/published.csv`.

    file: its name, or what it is in angle brackets where the name is not known; nbytes: about how large it is
    (parameters times bytes a weight); sha256: '' where it is not known; cells, guides: patterns of the names of cells
    whose network it is, or whose guide; note: what else to know.
    """

    file: str
    family: str
    nbytes: int
    sha256: str
    cells: tuple[str, ...]
    guides: tuple[str, ...]
    note: str


@cache
def published_files() -> tuple[PublishedFile, ...]:
    """All rows of `tables/published.csv`, in its order."""
    with open(assets.tables_dir() / "published.csv", encoding="utf-8", newline="") as stream:
        return tuple(
            PublishedFile(row["file"], row["family"], round(float(row["megabytes"]) * 1e6), row["sha256"],
                          tuple(row["cells"].split()), tuple(row["guides"].split()), row["note"])
            for row in csv.DictReader(stream)
        )  # fmt: skip


def files_of(cell: Cell, role: Role = "cells") -> list[PublishedFile]:
    """The published files that give a cell's weights (`cells`), or its guide's (`guides`); any one of them will do."""
    return [file for file in published_files() if _belongs(file, cell, role)]


def cells_of(file: PublishedFile) -> list[Cell]:
    """The cells that a published file belongs to, as their network or as its guide, in the order of the tables."""
    cells = [cell for name in table_names() for cell in load_table(name).cells]
    return [cell for cell in cells if _belongs(file, cell, "cells") or _belongs(file, cell, "guides")]


def _belongs(file: PublishedFile, cell: Cell, role: Role) -> bool:
    return not cell.reference_only and any(fnmatchcase(cell.name, pattern) for pattern in getattr(file, role))


@dataclasses.dataclass(frozen=True)
class Imported:
    """An imported folder by its provenance.

    source: published name of the file; cell: the cell that it was imported for by name, or ''; sha256: of the file;
    network: class and arguments of our network, as JSON; kind: `ema` or `live`; nimg, std: images seen and EMA width,
    where known.
    """

    folder: Path
    source: str
    cell: str
    sha256: str
    network: dict[str, Any]
    kind: str
    nimg: int | None
    std: float | None

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def read_imported(folder: Path) -> Imported:
    """An imported folder. CorruptData where it is none, or one of another version."""
    path = folder / PROVENANCE
    try:
        content = json.loads(path.read_bytes())
        if content["form"] != FORM:
            raise CorruptData(f"{path}: of form {content['form']}, this version reads {FORM}: import the file anew")
        if not (folder / WEIGHTS).is_file():
            raise CorruptData(f"{folder}: lacks {WEIGHTS}; remove the folder and import the file anew")
        fields = (content[key] for key in ("source", "cell", "sha256", "network", "kind", "nimg", "std"))
        return Imported(folder, *fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}: not the provenance of an imported checkpoint ({error})") from None


def find_imported(published: Path) -> list[Imported]:
    """All imported checkpoints in a folder of such, or the one that the folder itself is; sorted by folder."""
    if (published / PROVENANCE).is_file():
        return [read_imported(published)]
    return [read_imported(path.parent) for path in sorted(published.glob(f"*/{PROVENANCE}"))]


def imported_for(cell: Cell, imported: Iterable[Imported]) -> tuple[Imported, ...]:
    """The imported checkpoints of a cell: its network's, then its guide's; none where one of them is missing.

    Its network's is the one that was imported for the cell by name, or else that of its first published file.
    """
    known = list(imported)
    by_name = {one.source: one for one in reversed(known)}
    own = [one for one in known if one.cell == cell.name]
    own += [by_name[file.file] for file in files_of(cell) if file.file in by_name]
    guides = files_of(cell, "guides")
    if not guides:
        return tuple(own[:1])
    guiding = [by_name[file.file] for file in guides if file.file in by_name]
    return (own[0], guiding[0]) if own and guiding else ()


class Wanted(NamedTuple):
    """A network that a cell evaluates: its form, its average, and its time in images where that is fixed."""

    denoiser: Node
    ema: Node
    nimg: int | None


def wanted(resolved: Resolved) -> list[Wanted]:
    """What a cell needs of imported weights: of its network, then of its guide, if it has one."""
    args = resolved.evaluation.args
    rule, guide = args["selection"], args["guide"]
    last = rule.args["total_nimg"] if rule.name == "FinalSnapshot" else None
    found = [Wanted(resolved.trajectory.args["denoiser"], args["ema"], last)]
    if guide is not None:
        of = guide.args
        found.append(Wanted(of["trajectory"].args["denoiser"], of["ema"], of["milestone_nimg"]))
    return found


def check_fits(resolved: Resolved, *imported: Imported) -> None:
    """UsageError where checkpoints are not of the network, the time or the average that a cell measures.

    imported: of the cell's network, then of its guide.
    """
    needs = wanted(resolved)
    if len(needs) != len(imported):
        raise UsageError(f"{resolved.cell.name}: needs {len(needs)} imported networks, its guide's too")
    for leg, one in zip(needs, imported, strict=True):
        found = misfit(leg.denoiser, leg.ema.args.get("std"), leg.nimg, one)
        if found:
            where = f"{resolved.cell.name} at {resolved.scale}"
            raise UsageError(f"{one.folder}: {one.source} does not belong to {where}: {found}")


def misfit(denoiser: Node, std: float | None, nimg: int | None, imported: Imported) -> str:
    """Why a checkpoint is not of a network, an average and a time, in words; '' where it is. None is not compared."""
    node = denoiser.args["model"] if denoiser.name in BARE else denoiser
    found = first_difference(_described(node), imported.network)
    if found:
        return found
    if std is not None and imported.std is not None and std != imported.std:
        return f"it is an average of std {imported.std:g}, the cell's is of {std:g}"
    if nimg is not None and imported.nimg is not None and nimg != imported.nimg:
        return f"it is after {imported.nimg:,} images, the cell measures after {nimg:,}"
    return ""


NOT_SAMPLED = ("dropout", "label_dropout", "use_fp16", "use_bf16")
"""Arguments of networks that matter to training alone, and the precision, in which the cell has its own say."""


def first_difference(ours: Any, theirs: Any) -> str:
    """Where two networks, each as class and arguments, differ in words; '' where they agree. ours: the cell's."""
    if ours["class"] != theirs.get("class"):
        return f"its network is {theirs.get('class')}, the cell's is {ours['class']}"
    own, others = _written_out(ours), _written_out(theirs)
    for key, value in own.items():
        if key not in others:
            return f"it does not tell {ours['class']}.{key}; import it anew"
        other = others[key]
        if isinstance(value, dict) and isinstance(other, dict):
            if found := first_difference(value, other):
                return found
        elif key not in NOT_SAMPLED and value != other:
            return f"its {ours['class']}.{key} is {other!r}, the cell's is {value!r}"
    return ""


def _written_out(network: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a network, those in numbers that None leaves to others: published files tell None, rows a number."""
    args = dict(network["args"])
    if network["class"] == "EDM2UNet" and (levels := args.get("channel_mult")):
        for key, value in (("channel_mult_noise", levels[0]), ("channel_mult_emb", max(levels))):
            if key in args and args[key] is None:
                args[key] = value
    return args


def _described(value: Any) -> Any:
    if isinstance(value, Node):
        return {"class": value.name, "args": {key: _described(item) for key, item in value.args.items()}}
    return list(value) if isinstance(value, tuple) else value


def import_commands(cell: Cell, imported: Iterable[Imported] = ()) -> str:
    """What the user has to type to import those of a cell's weights that are not imported; '' where none is known."""
    known = {one.source for one in imported}
    commands = []
    for files in (files_of(cell), files_of(cell, "guides")):
        if files and not known.intersection(file.file for file in files):
            digest = f" --sha256 {files[0].sha256}" if files[0].sha256 else ""
            named = not files[0].file.startswith("<")
            commands.append(f"`repro import {files[0].file}{digest}`" if named else
                            f"`repro import FILE{digest} --as {cell.name}`")  # fmt: skip
    return " and ".join(commands)

"""What a runs folder can do without: files that no record, milestone or reconstruction needs."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from repro.cells import Leg, resolve, scale_names
from repro.config import build
from repro.launch.claims import Claim, acquire
from repro.results.records import Record, read_all
from repro.tables import load_table, table_names
from repro.training import snapshots


@dataclasses.dataclass(frozen=True)
class Superfluous:
    """Files of one run that can go, why, and their bytes; `kept` says why nothing of the run is looked at."""

    run: Path
    files: tuple[tuple[Path, str], ...] = ()
    kept: str = ""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path, _ in self.files if path.exists())


def survey(runs: Path, progress: Callable[[str], None] = lambda name: None) -> list[Superfluous]:
    """What every run of a folder can do without. Nothing is removed.

    A snapshot stays where a cell of the tables (at any scale, of the run's seed) or a record of the run asks for it.
    """
    folders = sorted(path.parent for path in runs.glob("*/manifest.json"))
    told = {folder: _manifest(folder) for folder in folders}
    trained = [manifest for manifest in told.values() if manifest and "imported" not in manifest]
    wanted = _legs({manifest["config"]["args"]["seed"] for manifest in trained}, progress)
    records: dict[str, list[Record]] = defaultdict(list)
    for record in read_all([runs])[0]:
        records[record.trajectory_hash].append(record)
    found = []
    for folder, manifest in told.items():
        if manifest is None:
            found.append(Superfluous(folder, kept="its manifest cannot be read"))
            continue
        name = manifest["trajectory_hash"]
        found.append(_of_run(folder, wanted.get(name, []), records.get(name, [])))
    return found


def remove(found: Superfluous) -> bool:
    """Remove the files of one run, under its claim; False where a living process works on it."""
    claim = acquire(found.run)
    if not isinstance(claim, Claim):
        return False
    with claim:
        for path, _ in found.files:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path, _ in found.files if path.parent.name.startswith("partial-")}:
            if not any(folder.iterdir()):
                folder.rmdir()
    return True


def _of_run(folder: Path, legs: list[Leg], records: list[Record]) -> Superfluous:
    files: list[tuple[Path, str]] = []
    for pattern, why in (("**/.*.tmp", "left by a writer that was killed"), ("*.damaged", "a damaged checkpoint")):
        files += [(path, why) for path in sorted(folder.glob(pattern))]
    for record in sorted(folder.glob("eval/*/*/range*/record.json")):
        blocks = sorted(record.parent.glob("partial-*/*"))
        files += [(path, "a block of images that are scored") for path in blocks]
    if legs or records:
        needed = {path for leg in legs for path in _snapshots(folder, build(leg.ema), leg.milestones)}
        for one in records:
            needed |= set(_snapshots(folder, _ema(one), [one.milestone_nimg]))
        spare = sorted(set(folder.glob("ema/*.safetensors")) - needed)
        files += [(path, "a snapshot that no cell and no record needs") for path in spare]
    return Superfluous(folder, tuple(files))


def _snapshots(folder: Path, ema: Any, milestones: Iterable[int]) -> list[Path]:
    profiles = [profile.name for profile in ema.profiles()]
    return [
        snapshots.path(folder, time, name)
        for milestone in milestones
        for time in ema.times(milestone)
        for name in profiles
    ]


def _ema(record: Record) -> Any:
    """The average that a record was sampled from, built from its own configuration."""
    import repro.experiment  # noqa: F401  makes the configurables known
    from repro.config import REGISTRY

    told = record.config["args"]["evaluation"]["args"]["ema"]
    return REGISTRY[told["class"]](**told["args"])


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        if "imported" not in content:  # a network that was not trained here has no seed
            content["config"]["args"]["seed"]
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _legs(seeds: set[int], progress: Callable[[str], None]) -> dict[str, list[Leg]]:
    """Trajectory hash -> what the cells of all tables ask of it, at every scale and for every seed."""
    found: dict[str, list[Leg]] = defaultdict(list)
    for name in table_names():
        for scale in scale_names():
            progress(f"{name} at {scale}")
            for cell in load_table(name).computable:
                base = resolve(cell, scale)
                for seed in seeds:
                    for leg in base.with_seed(seed).legs:
                        found[leg.trajectory_hash].append(leg)
    return found

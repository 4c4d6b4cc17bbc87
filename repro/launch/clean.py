"""What a runs folder can do without: files that no record, milestone or reconstruction needs."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repro.cells import resolve, scale_names
from repro.config import build
from repro.identity import digest
from repro.launch.claims import Claim, acquire
from repro.results.records import Record, read_all
from repro.tables import load_table, table_names
from repro.training import snapshots

Asked = tuple[Any, Sequence[int]]
"""An average of the weights, and milestones in images."""


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
    wanted = _of_tables({manifest["config"]["args"]["seed"] for manifest in trained}, progress)
    for record in read_all([runs])[0]:
        for name, asked in _asked(record):
            wanted[name].append(asked)
    found = []
    for folder, manifest in told.items():
        if manifest is None:
            found.append(Superfluous(folder, kept="its manifest cannot be read"))
            continue
        found.append(_of_run(folder, wanted.get(manifest["trajectory_hash"], [])))
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


def _of_run(folder: Path, asked: list[Asked]) -> Superfluous:
    files: list[tuple[Path, str]] = []
    for pattern, why in (("**/.*.tmp", "left by a writer that was killed"), ("*.damaged", "a damaged checkpoint")):
        files += [(path, why) for path in sorted(folder.glob(pattern))]
    for record in sorted(folder.glob("eval/*/*/range*/record.json")):
        blocks = sorted(record.parent.glob("partial-*/*"))
        files += [(path, "a block of images that are scored") for path in blocks]
    if asked:
        needed = {path for ema, milestones in asked for path in snapshots.needed(folder, ema, milestones)}
        spare = sorted(set(folder.glob("ema/*.safetensors")) - needed)
        files += [(path, "a snapshot that no cell and no record needs") for path in spare]
    return Superfluous(folder, tuple(files))


def _asked(record: Record) -> Iterator[tuple[str, Asked]]:
    """What a record was sampled from: (trajectory hash, average and milestone), of its network and of its guide."""
    evaluation = record.config["args"]["evaluation"]["args"]
    yield record.trajectory_hash, (_ema(evaluation["ema"]), [record.milestone_nimg])
    if guide := evaluation.get("guide"):
        told = guide["args"]
        yield digest(told["trajectory"]), (_ema(told["ema"]), [told["milestone_nimg"]])


def _ema(told: dict[str, Any]) -> Any:
    """An average, built from its canonical form."""
    import repro.experiment  # noqa: F401  makes the configurables known
    from repro.config import REGISTRY

    return REGISTRY[told["class"]](**told["args"])


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        if "imported" not in content:  # a network that was not trained here has no seed
            content["config"]["args"]["seed"]
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_tables(seeds: set[int], progress: Callable[[str], None]) -> dict[str, list[Asked]]:
    """Trajectory hash -> what the cells of all tables ask of it, at every scale and for every seed."""
    found: dict[str, list[Asked]] = defaultdict(list)
    for name in table_names():
        for scale in scale_names():
            progress(f"{name} at {scale}")
            for cell in load_table(name).computable:
                base = resolve(cell, scale)
                for seed in seeds:
                    for leg in base.with_seed(seed).legs:
                        found[leg.trajectory_hash].append((build(leg.ema), leg.milestones))
    return found

"""From a cell's name to all that decides its number: column, row, scale and user bindings, resolved and hashed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import repro.experiment  # noqa: F401  makes the configurables known
from repro import assets
from repro.config import Composition, Node, build, canonical
from repro.errors import UsageError
from repro.identity import SHORT, digest, evaluation_hash, trajectory_hash
from repro.scale import apply_scale
from repro.suggest import suggest
from repro.tables import Cell


@dataclasses.dataclass(frozen=True)
class Resolved:
    """One replicate of a cell at a scale: trees at that scale, the parsed text, and the identity."""

    cell: Cell
    scale: str
    experiment: Node
    execution: Node
    text: str

    @property
    def trajectory(self) -> Node:
        return self.experiment.args["trajectory"]

    @property
    def evaluation(self) -> Node:
        return self.experiment.args["evaluation"]

    @property
    def seed(self) -> int:
        """The training seed, which is the replicate."""
        return self.trajectory.args["seed"]

    @cached_property
    def trajectory_hash(self) -> str:
        return trajectory_hash(self.trajectory)

    @cached_property
    def evaluation_hash(self) -> str:
        return evaluation_hash(self.trajectory, self.evaluation)

    @property
    def run(self) -> str:
        """Folder name of the trajectory under `runs`."""
        return self.trajectory_hash[:SHORT]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The canonical resolved configuration: what is hashed."""
        return canonical(self.experiment)

    def with_seed(self, seed: int) -> Resolved:
        """The same cell with another training seed."""
        trajectory = self.trajectory.replace(seed=seed)
        return dataclasses.replace(self, experiment=self.experiment.replace(trajectory=trajectory))

    def dataset(self) -> Any:
        """The built data set; opens no file."""
        return build(self.trajectory.args["data"])

    def selection(self) -> Any:
        """The built selection rule: milestones, ranges and how the cell's value is chosen."""
        return build(self.evaluation.args["selection"])

    def protocol(self) -> Any:
        """The built scoring protocol."""
        return build(self.evaluation.args["protocol"])

    def ema(self) -> Any:
        """The built EMA profile."""
        return build(self.evaluation.args["ema"])


def scale_names() -> list[str]:
    """Names of the files in `gin/scale`."""
    return sorted(path.stem for path in (assets.gin_dir() / "scale").glob("*.gin"))


def resolve(cell: Cell, scale: str = "full", bindings: Sequence[str] = (), *, seed: int | None = None) -> Resolved:
    """Compose and scale one cell.

    Args:
        cell: the cell.
        scale: name of a file in `gin/scale`.
        bindings: texts of `--gin`; they bind values at full scale, as rows do.
        seed: training seed; None keeps the configuration's (0).

    Raises:
        UsageError: an unknown scale, a typo in a file or binding, a binding that nothing uses.
    """
    if scale not in scale_names():
        raise UsageError(f"no scale {scale!r}{suggest(scale, scale_names())} known: {', '.join(scale_names())}")
    composition = Composition([*cell.gin, _scale_file(cell, scale)], bindings, strict=[cell.row_file])
    full = composition.root("Experiment")
    factors = composition.root("Scale")
    execution = composition.root("Execution")
    composition.check_used()
    resolved = Resolved(cell, factors.args["name"], apply_scale(full, factors), execution, composition.text)
    return resolved if seed is None else resolved.with_seed(seed)


def _scale_file(cell: Cell, scale: str) -> str:
    """The scale's file, or the paper's own form of it where there is one: `scale/<paper>/<scale>.gin`."""
    own = f"scale/{cell.table.split('/')[0]}/{scale}.gin"
    return own if (assets.gin_dir() / own).is_file() else f"scale/{scale}.gin"


def experiment_digest(resolved: Resolved) -> str:
    """Identity of a cell whatever its training seed: references are measured over seeds and name this."""
    return digest(canonical(resolved.with_seed(0).experiment))

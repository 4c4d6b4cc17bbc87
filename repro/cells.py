"""From a cell's name to all that decides its number: column, row, scale and user bindings, resolved and hashed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from repro import assets, cache
from repro.config import Composition, Node, build, build_on_meta, canonical, from_plain, to_plain
from repro.errors import UsageError
from repro.gin_walk import expand
from repro.identity import SHORT, digest, evaluation_hash
from repro.scale import apply_scale
from repro.selection import BestSnapshot, Selection
from repro.suggest import suggest
from repro.tables import Cell


@dataclasses.dataclass(frozen=True)
class Leg:
    """A training run that a cell stands on, and what it asks of it: an average at some milestones (images)."""

    trajectory: Node
    trajectory_hash: str
    ema: Node
    milestones: tuple[int, ...]

    @property
    def run(self) -> str:
        """Folder name of the trajectory under `runs`."""
        return self.trajectory_hash[:SHORT]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """One replicate of a cell at a scale: trees at that scale, the parsed text, and the identity.

    config: the canonical resolved configuration, which is what is hashed; metrics: names of all metrics that the
    protocol computes; metric: the one that decides; imported: sha256 of the published files whose weights take the
    place of training, of the network and of its guide; none where all is trained.
    """

    cell: Cell
    scale: str
    experiment: Node
    execution: Node
    text: str
    config: dict[str, Any]
    metric: str
    metrics: tuple[str, ...]
    imported: tuple[str, ...] = ()

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
        return digest(self.config["args"]["trajectory"])

    @cached_property
    def evaluation_hash(self) -> str:
        return evaluation_hash(self.trajectory_hash, self.config["args"]["evaluation"])

    @property
    def run(self) -> str:
        """Folder name of the trajectory under `runs`."""
        return self.trajectory_hash[:SHORT]

    @cached_property
    def legs(self) -> tuple[Leg, ...]:
        """The training runs that the cell needs: its own, then that of its guide, if any."""
        args = self.evaluation.args
        own = Leg(self.trajectory, self.trajectory_hash, args["ema"], tuple(self.selection().milestones()))
        if args["guide"] is None or self.imported:
            return (own,)
        guide, told = args["guide"].args, self.config["args"]["evaluation"]["args"]["guide"]["args"]["trajectory"]
        return own, Leg(guide["trajectory"], digest(told), guide["ema"], (guide["milestone_nimg"],))

    def with_seed(self, seed: int) -> Resolved:
        """The same cell with another training seed, its guide's too: replicates share nothing; of imported weights
        itself.
        """
        if self.imported:
            return self
        experiment, config = self.experiment, self.config
        for path in (("trajectory",), ("evaluation", "guide", "trajectory")):
            experiment = _with_arguments(experiment, path, seed=seed)
            config = _with_told_arguments(config, path, seed=seed)
        return dataclasses.replace(self, experiment=experiment, config=config)

    def check(self) -> None:
        """Raise UsageError for what no training would mend: settings that data, networks and sampler refuse together.

        Networks are built on the meta device, once a cell and version of the sources.
        """
        cache.remember("checked", f"{self.trajectory_hash} {self.evaluation_hash}", self._check)

    def _check(self) -> bool:
        from repro.diffusion.samplers import check_sampler  # imports torch

        args = self.evaluation.args
        net, guide = build_on_meta(self.trajectory.args["denoiser"]), args["guide"]
        build(self.trajectory.replace(denoiser=net))
        if guide is not None:
            from repro.diffusion.guidance import check_guide  # imports torch

            other = build_on_meta(guide.args["trajectory"].args["denoiser"])
            guide = guide.replace(trajectory=guide.args["trajectory"].replace(denoiser=other))
            check_guide(net, other)
        build(self.evaluation.replace(guide=guide))
        check_sampler(args["sampler"].name, build(args["sampler"]), net)
        return True

    def with_imported(self, *sha256: str) -> Resolved:
        """The same evaluation of published networks: trajectories that were not trained here, with identities of their
        own. The files decide the weights; the cell decides the networks' form and the data that are scored against.

        sha256: of the file of the network, then of its guide's, if it has one.
        """
        config, paths = self.config, (("trajectory",), ("evaluation", "guide", "trajectory"))
        for path, digest_ in zip(paths, sha256, strict=False):
            config = _with_imported(config, path, digest_)
        return dataclasses.replace(self, config=config, imported=sha256)

    def preview(self) -> Resolved | None:
        """The same cell as its candidates are scored, an evaluation of its own; None where it scores them itself."""
        node = self.evaluation.args["preview"]
        if node is None or self.imported:
            return None
        if not isinstance(self.selection(), BestSnapshot):
            raise UsageError("Evaluation.preview chooses among snapshots: Evaluation.selection must be a BestSnapshot")
        changes = {**node.args, "preview": None}
        parts = self.config["args"]
        told = dict(parts["evaluation"]["args"])
        told |= told.pop("preview")["args"]
        protocol = self.evaluation.args["protocol"]
        if "n" in protocol.args:
            changes["protocol"] = protocol.replace(n=node.args["num_samples"])
            kept = told["protocol"]
            told["protocol"] = {**kept, "args": {**kept["args"], "n": node.args["num_samples"]}}
        return dataclasses.replace(
            self,
            experiment=self.experiment.replace(evaluation=self.evaluation.replace(**changes)),
            config={**self.config, "args": {**parts, "evaluation": {**parts["evaluation"], "args": told}}},
        )

    def dataset(self) -> Any:
        """The built data set; opens no file."""
        return build(self.trajectory.args["data"])

    def missing_prompts(self, data_dir: Path) -> list[str]:
        """What has to be prepared before images can be generated from captions, one line each."""
        node = self.evaluation.args["prompts"]
        return build(node).missing(data_dir) if node else []

    def selection(self) -> Selection:
        """The built selection rule: milestones, ranges and how the cell's value is chosen. Imports no torch."""
        rule: Selection = build(self.evaluation.args["selection"])
        return rule.given() if self.imported else rule

    def protocol(self) -> Any:
        """The built scoring protocol."""
        return build(self.evaluation.args["protocol"])

    def ema(self) -> Any:
        """The built EMA profile."""
        return build(self.evaluation.args["ema"])


def _with_arguments(node: Node, path: Sequence[str], **changes: Any) -> Node:
    """A copy with other arguments of the node at `path`; the same where there is none."""
    if not path:
        return node.replace(**changes)
    inner = node.args[path[0]]
    return node if inner is None else node.replace(**{path[0]: _with_arguments(inner, path[1:], **changes)})


def _with_told_arguments(told: dict[str, Any], path: Sequence[str], **changes: Any) -> dict[str, Any]:
    """`_with_arguments` of the canonical form."""
    args = told["args"]
    if path and path[0] not in args:
        return told
    new = {path[0]: _with_told_arguments(args[path[0]], path[1:], **changes)} if path else changes
    return {**told, "args": {**args, **new}}


def _with_imported(told: dict[str, Any], path: Sequence[str], sha256: str) -> dict[str, Any]:
    """The canonical form with an imported trajectory in place of the one at `path`."""
    args = told["args"]
    if path:
        return {**told, "args": {**args, path[0]: _with_imported(args[path[0]], path[1:], sha256)}}
    own = {key: args[key] for key in ("data", "denoiser")}
    return {"class": "ImportedTrajectory", "revision": 1, "args": {**own, "sha256": sha256}}


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
        raise UsageError(f"no scale {scale!r}{suggest(scale, scale_names())}")
    files = (*cell.gin, _scale_file(cell, scale))
    resolved = dataclasses.replace(_resolve(files, cell.row_file, tuple(bindings), _texts(files)), cell=cell)
    return resolved if seed is None else resolved.with_seed(seed)


def resolve_text(cell: Cell, text: str, *, seed: int) -> Resolved:
    """Resolve a cell from the full text of its configuration (`Resolved.text`), whatever its files say by now."""
    return dataclasses.replace(_resolve((cell.row_file,), "", (), text, whole=True), cell=cell).with_seed(seed)


@lru_cache(maxsize=4096)
def _resolve(
    files: tuple[str, ...], strict: str, bindings: tuple[str, ...], texts: str, whole: bool = False
) -> Resolved:
    """Compose and scale, or take it from the cache; the result belongs to no cell yet.

    Composing needs every class, and so torch; a command that only looks at records can do without. `whole`: the texts
    are one expanded configuration, in place of the files.
    """
    key = json.dumps([files, strict, bindings, texts, whole, importlib.metadata.version("gin-config")])
    kept = cache.load("cell", key)
    if kept is not None:
        trees = {name: from_plain(kept[name]) for name in ("experiment", "execution")}
        return Resolved(_NO_CELL, **{**kept, **trees, "metrics": tuple(kept["metrics"])})
    resolved = _compose(files, strict, bindings, texts if whole else None)
    parts = {field.name: getattr(resolved, field.name) for field in dataclasses.fields(Resolved)}
    del parts["cell"], parts["imported"]
    cache.store("cell", key, {name: to_plain(value) for name, value in parts.items()})
    return resolved


def _compose(files: tuple[str, ...], strict: str, bindings: tuple[str, ...], text: str | None) -> Resolved:
    import repro.experiment  # noqa: F401  makes the configurables known

    composition = Composition(files, bindings, strict=[strict], text=text)
    full = composition.root("Experiment")
    factors = composition.root("Scale")
    execution = composition.root("Execution")
    composition.check_used()
    experiment = apply_scale(full, factors)
    evaluation = experiment.args["evaluation"].args
    protocol = build(evaluation["protocol"])
    build([node.args["ema"] for node in (experiment.args["evaluation"], evaluation["guide"]) if node])  # or refuse them
    return Resolved(
        cell=_NO_CELL,
        scale=factors.args["name"],
        experiment=experiment,
        execution=execution,
        text=composition.text,
        config=canonical(experiment),
        metric=protocol.primary,
        metrics=tuple(protocol.metrics),
    )


_NO_CELL = Cell("", "", "", {}, starred=False, inferred="")


def _texts(files: Sequence[str]) -> str:
    """Names and texts of Gin files, includes in place; '' for a file that cannot be read, which composing explains."""
    texts = []
    for file in files:
        try:
            texts.append(expand(assets.gin_dir(), file, names=True))
        except OSError:
            texts.append("")
    return "\0".join(texts)


def _scale_file(cell: Cell, scale: str) -> str:
    """The scale's file, or the paper's own form of it where there is one: `scale/<paper>/<scale>.gin`."""
    own = f"scale/{cell.table.split('/')[0]}/{scale}.gin"
    return own if (assets.gin_dir() / own).is_file() else f"scale/{scale}.gin"


def experiment_digest(resolved: Resolved) -> str:
    """Identity of a cell whatever its training seed: references are measured over seeds and name this."""
    return digest(resolved.with_seed(0).config)

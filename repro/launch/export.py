"""`repro export`: the weights behind a cell's value, with a model card, in the form that imported checkpoints have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from repro.cells import Resolved
from repro.config import Node, build, canonical
from repro.errors import MissingPrerequisite, UsageError
from repro.importers.folders import new_folder, write_description, write_state
from repro.launch.evaluate import identity_of
from repro.launch.work import build_trajectory
from repro.published import BARE, CONFIG, PROVENANCE, WEIGHTS, Imported, read_imported
from repro.results import provenance
from repro.results.collect import CellResult, Replicate
from repro.tables import Table


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is exported: a cell with one replicate of its value, and where its trajectory lies."""

    table: Table
    result: CellResult
    replicate: Replicate
    resolved: Resolved
    folder: Path


def choose(table: Table, result: CellResult, resolved: Resolved, seed: int | None, runs: Sequence[Path]) -> Chosen:
    """The replicate of a training seed, or the first; its weights must be in one of the folders.

    Raises:
        MissingPrerequisite: the cell has no value, none of this seed, or its weights are not there.
    """
    known = {replicate.seed: replicate for replicate in result.replicates}
    replicate = next(iter(known.values()), None) if seed is None else known.get(seed)
    if replicate is None:
        why = "; ".join(result.notes) or "no record"
        which = "" if seed is None else f" of seed {seed}"
        raise MissingPrerequisite(f"{result.cell.name} has no value{which} ({why}): `repro run {result.cell.name}`")
    resolved = resolved.with_seed(replicate.seed)
    for folder in runs:
        if (folder / resolved.run / "ema").is_dir():
            return Chosen(table, result, replicate, resolved, folder / resolved.run)
    raise MissingPrerequisite(f"the weights of {resolved.run} are in none of {', '.join(map(str, runs))}")


def export(chosen: Chosen, out: Path) -> Imported:
    """Write the folder. Raises UsageError where it exists, CorruptData and MissingPrerequisite as `ema.load`."""
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    resolved, replicate = chosen.resolved, chosen.replicate
    net: nn.Module = build_trajectory(resolved).denoiser.eval()
    ema = build(resolved.evaluation.args["ema"])
    meta = ema.load(chosen.folder, resolved.trajectory_hash, replicate.milestone_nimg, net)
    node: Node = resolved.trajectory.args["denoiser"]
    if node.name in BARE:  # as published: the network alone
        net, node = net.get_submodule("model"), node.args["model"]
    digest = identity_of(resolved.evaluation_hash, net)
    revision, dirty = provenance.git_state()
    content: dict[str, Any] = {
        "source": f"{resolved.cell.name} at scale {resolved.scale}, seed {replicate.seed}",
        "bytes": None,
        "sha256": digest,
        "known_as": None,
        "format": "trained by repro",
        "family": "repro",
        "class": node.name,
        "as": None,
        "cell": resolved.cell.name,
        "kind": "ema",
        "nimg": replicate.milestone_nimg,
        "nimg_seen": int(meta["nimg"]),
        "std": resolved.evaluation.args["ema"].args.get("std"),
        "parameters": sum(p.numel() for p in net.parameters()),
        "scale": resolved.scale,
        "seed": replicate.seed,
        "trajectory_hash": resolved.trajectory_hash,
        "evaluation_hash": resolved.evaluation_hash,
        "config": resolved.config,
        "data_manifest_sha256": meta["data_manifest"],
        "git_revision": revision,
        "git_dirty": dirty,
        "versions": provenance.versions(),
    }
    with new_folder(out) as folder:
        write_state(folder / WEIGHTS, net.state_dict(), {"source_sha256": digest})
        write_description(folder, node, content)
        (folder / "README.md").write_text(card(chosen, content), encoding="utf-8")
    return read_imported(out)


def card(chosen: Chosen, content: dict[str, Any]) -> str:
    """The model card, markdown."""
    table, result, replicate, resolved = chosen.table, chosen.result, chosen.replicate, chosen.resolved
    cell = result.cell
    digits = "" if resolved.scale == "full" else " (another scale than the paper's: the values are not comparable)"
    values = [f"| {name} | {value:.4f} | {cell.reference.get(name, '')} |" for name, value in replicate.metrics.items()]
    others = [
        f"| paper's {name} | | {value} |" for name, value in cell.reference.items() if name not in replicate.metrics
    ]
    evaluation = canonical(resolved.evaluation)["args"]
    sampler, ema = evaluation["sampler"], evaluation["ema"]
    lines = [
        f"# {cell.name}",
        "",
        f"{table.title}: row {table.rows[cell.row]}, column {table.columns[cell.column]}.",
        f"{table.paper}.",
        "",
        "| metric | this network | the paper |",
        "| --- | --- | --- |",
        *values,
        *others,
        "",
        f"- scale: {resolved.scale}{digits}",
        f"- {content['parameters']:,} parameters, {content['class']}; training seed {replicate.seed}",
        f"- weights after {replicate.milestone_nimg:,} images, averaged as {_words(ema)}",
        f"- chosen from {replicate.candidates} candidates by {_words(evaluation['selection'])}",
        f"- the value is of sampling range {replicate.range}",
        f"- sampled with {_words(sampler)}: {replicate.nfe:g} evaluations of the network an image",
        f"- the paper's value: {table.chosen}",
        *([f"- inferred setting: {cell.inferred}"] if cell.inferred else []),
        *(f"- {note}" for note in result.notes),
        "",
        "## Provenance",
        "",
        f"- trajectory {resolved.trajectory_hash}",
        f"- evaluation {resolved.evaluation_hash}",
        f"- data manifest sha256 {content['data_manifest_sha256']}",
        f"- git revision {content['git_revision'] or 'unknown'}{' (with changes)' if content['git_dirty'] else ''}",
        f"- {', '.join(f'{name} {version}' for name, version in content['versions'].items())}",
        "",
        "## Files",
        "",
        f"- `{WEIGHTS}`: float32, the names of the network's own parameters",
        f"- `{CONFIG}`: Gin bindings that rebuild it",
        f"- `{PROVENANCE}`: all of the above, and the whole configuration",
        "",
        "    from repro.importers import folders",
        "    net = folders.load(Path('this folder'))",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _words(described: dict[str, Any]) -> str:
    """A configured class in one line: `edm_sampler(num_steps=18, ...)`."""
    return f"{described['class']}({', '.join(f'{key}={value!r}' for key, value in described['args'].items())})"

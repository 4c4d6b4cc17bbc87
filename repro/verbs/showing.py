"""`repro show` and `repro diff`: what a cell is made of, and what makes two cells differ."""

from __future__ import annotations

import argparse
import json
from typing import Any

from repro.cells import Resolved, resolve
from repro.config import build, build_on_meta, flatten, flatten_origins
from repro.verbs.computing import computable_cell
from repro.verbs.terminal import status_line

ADAPTIVE = "adaptive: measured when sampling, a mean over images"


def show(options: argparse.Namespace) -> int:
    """Print a cell's configuration, identity, size and cost."""
    cell = computable_cell(options.cell)
    status_line(f"{cell.name}: parameters and operations are counted")
    try:
        resolved = resolve(cell, options.scale, options.gin)
        resolved.check()
        facts = describe(resolved)
    finally:
        status_line("")
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{facts['cell']} at {facts['scale']}")
    print(f"  {'trajectory_hash':16} {facts['trajectory_hash']}")
    print(f"  {'evaluation_hash':16} {facts['evaluation_hash']}")
    if facts["fused_parameters"] is not None:
        print(
            f"  {'parameters':16} {facts['fused_parameters']} (of the form that is sampled from, as the paper counts)"
        )
        print(f"  {'trained':16} {facts['parameters']} (parameters of the form that is trained)")
    else:
        print(f"  {'parameters':16} {facts['parameters']}")
    for key in ("nfe", "milestone_kimg", "candidates", "ranges"):
        print(f"  {key:16} {ADAPTIVE if key == 'nfe' and facts[key] is None else facts[key]}")
    if facts["gflops"] is not None:
        print(f"  {'gflops':16} {facts['gflops']:.2f} (multiply-accumulates of an image, as the paper counts them)")
    print(f"  {'snapshots_gb':16} {facts['snapshots_gb']:.2f} (disk for the EMA at every candidate)")
    print(f"  {'gin':16} {', '.join(facts['gin'])}")
    values = flatten(resolved.experiment)
    width = max(len(path) for path in values)
    for path, value in values.items():
        print(f"  {path:{width}}  {value!s:32}  {facts['set'].get(path, '')}")
    return 0


def describe(resolved: Resolved) -> dict[str, Any]:
    """All that `show --json` prints."""
    from repro.diffusion.samplers import count_nfe, is_adaptive  # heavy; a name that is wrong was refused before
    from repro.results.sizes import count

    net = build_on_meta(resolved.trajectory.args["denoiser"])
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    counted = count(resolved)
    inference = round(1e6 * counted["Mparams"])
    selection = resolved.selection()
    sampler = build(resolved.evaluation.args["sampler"])
    milestones = selection.milestones()
    return {
        "cell": resolved.cell.name,
        "scale": resolved.scale,
        "config": resolved.config,
        "trajectory_hash": resolved.trajectory_hash,
        "evaluation_hash": resolved.evaluation_hash,
        "parameters": parameters,
        "fused_parameters": None if inference == parameters else inference,
        "gflops": counted.get("Gflops"),
        "nfe": None if is_adaptive(sampler) else count_nfe(sampler),
        "milestone_kimg": milestones[-1] / 1000,
        "milestones_kimg": [milestone / 1000 for milestone in milestones],
        "candidates": len(milestones),
        "ranges": selection.ranges,
        "snapshots_gb": len(milestones) * parameters * 4 / 1e9,
        "gin": [*resolved.cell.gin, f"scale/{resolved.scale}.gin"],
        "reference": resolved.cell.reference,
        "starred": resolved.cell.starred,
        "inferred": resolved.cell.inferred or None,
        "set": flatten_origins(resolved.experiment),
    }


def diff(options: argparse.Namespace) -> int:
    """Print the values in which two cells differ, and where the second's were set."""
    first, second = (
        resolve(computable_cell(name), options.scale, options.gin) for name in (options.first, options.second)
    )
    second.check()
    changes = differences(first, second)
    if options.json:
        print(json.dumps(changes, indent=1))
        return 0
    print(f"{first.cell.name} -> {second.cell.name} at {first.scale}")
    if not changes:
        print("  nothing differs")
    width = max((len(change["path"]) for change in changes), default=0)
    for change in changes:
        print(f"  {change['path']:{width}}  {change['first']} -> {change['second']}  ({change['set']})")
    return 0


def differences(first: Resolved, second: Resolved) -> list[dict[str, Any]]:
    """One entry a path at which two cells differ; what only one has is None in the other, and so alike if None too."""
    ours, theirs = flatten(first.experiment), flatten(second.experiment)
    origins = {**flatten_origins(first.experiment), **flatten_origins(second.experiment)}
    return [
        {"path": path, "first": ours.get(path), "second": theirs.get(path), "set": origins.get(path, "")}
        for path in dict.fromkeys([*ours, *theirs])
        if ours.get(path) != theirs.get(path)
    ]

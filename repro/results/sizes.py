"""How large the paper's networks are: counted from the real ones, at full scale, for tables that print sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from repro import cache
from repro.cells import Resolved, resolve
from repro.config import build_on_meta
from repro.tables import Cell

SIZES = ("Mparams", "Gflops")
"""Columns that a table may show: millions of parameters, and 10^9 multiply-accumulates an evaluation."""


def sizes(cell: Cell, bindings: Sequence[str] = ()) -> dict[str, float]:
    """Of the network of a cell (not of its guide), by the names of `SIZES`."""
    resolved = resolve(cell, "full", bindings)
    told = resolved.config["args"]["trajectory"]["args"]["denoiser"]
    found: dict[str, float] = cache.remember("sizes", json.dumps(told, sort_keys=True), lambda: count(resolved))
    return found


def count(resolved: Resolved) -> dict[str, float]:
    """The sizes of a resolved cell's network at its own scale, counted on the meta device in the paper's way.

    What is counted is the form that is sampled from: of U-DiT the one with fused feed-forwards, which has fewer
    parameters than training moves (Table 8 of the paper).
    """
    from repro.diffusion.discrete_denoiser import DiscreteDenoiser
    from repro.diffusion.precond import Precond
    from repro.models.counting import cost, is_countable, operations

    net = build_on_meta(resolved.trajectory.args["denoiser"])
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if not isinstance(net, DiscreteDenoiser):
        called = net.model if isinstance(net, Precond) else net  # of EDM's the network alone
        return {"Mparams": parameters / 1e6, "Gflops": operations(called, *_inputs(net)) / 1e9}
    if not is_countable(net.model):
        return {"Mparams": parameters / 1e6}
    found = cost(lambda: net.model)
    return {"Mparams": found.inference / 1e6, "Gflops": found.traced / 1e9}


def _inputs(net: Any) -> tuple[Any, ...]:
    """One image, its noise level and its label, on the meta device."""
    import torch

    with torch.device("meta"):
        labels = torch.empty(1, net.label_dim) if net.label_dim else None
        return torch.empty(1, net.img_channels, net.img_resolution, net.img_resolution), torch.empty(1), labels

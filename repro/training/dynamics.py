"""Training dynamics: magnitudes of activations, weights and updates, layer by layer (Karras et al. 2024, section 2).

Recorded beside a run, in `dynamics.jsonl`, at evenly spaced points of it. Reading moves no number: no random draw, no
change of a tensor. A layer is a block of the network: an entry of its lists or dictionaries of modules.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repro.errors import MissingPrerequisite
from repro.files import append_line

FILE = "dynamics.jsonl"


class Magnitudes(NamedTuple):
    """Root mean squares of one layer at one step: its output (the images of this process), weights, and their change.

    The change is that of the step, from before it to after it; weights are those before.
    """

    activation: float
    weight: float
    update: float


class Recorder:
    """Writes the magnitudes of a network's layers at `points` evenly spaced points of `total` images.

    Args:
        net: the network that is trained.
        folder: that of the run.
        points: how many; 0 records nothing.
        total: images of the run.
    """

    def __init__(self, net: nn.Module, folder: Path, points: int, total: int) -> None:
        self.folder = folder
        self.every = total / points if points else 0.0
        self.layers = layers(net) if points else {}

    def is_due(self, nimg: int, batch: int) -> bool:
        """Whether the step of `batch` images from `nimg` on passes a point; the first step does."""
        return bool(self.every) and (nimg == 0 or nimg // self.every != (nimg + batch) // self.every)

    @contextlib.contextmanager
    def watching(self, nimg: int) -> Iterator[None]:
        """Record the step that is taken inside, from `nimg` images on."""
        before = {name: [p.detach().clone() for p in weights(layer)] for name, layer in self.layers.items()}
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        handles = [
            layer.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(_square(output)))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        found = {}
        for name, layer in self.layers.items():
            old, new = before[name], weights(layer)
            moved = [a.detach() - b for a, b in zip(new, old, strict=True)]
            if outputs[name]:
                activation = float(torch.stack(outputs[name]).mean().sqrt())
                found[name] = Magnitudes(activation, rms(old), rms(moved))
        append_line(self.folder / FILE, json.dumps({"nimg": nimg, "layers": found}))


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a network that have weights, by their names, in the order of its state."""
    holders = [
        (name, module) for name, module in net.named_modules() if isinstance(module, nn.ModuleDict | nn.ModuleList)
    ]
    outer = [
        (name, module) for name, module in holders if not any(name.startswith(f"{other}.") for other, _ in holders)
    ]
    return {
        f"{name.rpartition('.')[2]}.{key}": child
        for name, module in outer
        for key, child in module.named_children()
        if weights(child)
    }


def weights(layer: nn.Module) -> list[nn.Parameter]:
    """Matrices and kernels of a layer; gains, biases and scales are none."""
    return [p for p in layer.parameters() if p.ndim >= 2]


def rms(tensors: list[Any]) -> float:
    """Root mean square of all elements of some tensors."""
    total = sum(float(t.detach().double().square().sum()) for t in tensors)
    return float((total / max(sum(t.numel() for t in tensors), 1)) ** 0.5)


def read(folder: Path) -> dict[int, dict[str, Magnitudes]]:
    """What a run recorded: images before the step -> layer -> magnitudes. Of a step taken twice the last counts.

    Raises:
        MissingPrerequisite: nothing was recorded.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingPrerequisite(
            f"{path}: nothing was recorded there; `Execution.dynamics` says at how many points a run is: train with "
            "--gin 'Execution.dynamics = 32' under another --runs folder"
        )
    found: dict[int, dict[str, Magnitudes]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a kill; the step was taken again
        found[entry["nimg"]] = {name: Magnitudes(*values) for name, values in entry["layers"].items()}
    return dict(sorted(found.items()))


def _square(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    return first.detach().float().square().mean()

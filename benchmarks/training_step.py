"""Milliseconds of one training step of the real loop at mini, beside the same step written with PyTorch's own parts.

The plain step has one optimiser state and one EMA a tensor, `F.dropout`, and no matrix products in place of
convolutions. Both run in turn
in one process, on one thread; the ratio is what to compare between machines and versions.

python benchmarks/training_step.py [CELL] [STEPS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from repro.cells import resolve
from repro.config import build
from repro.launch.work import build_trajectory
from repro.models import layers
from repro.tables import find_cell
from repro.training.loop import Tracked, Trainer


def prepare(cell: str, folder: Path) -> Trainer:
    """A trainer of the cell at mini, at its first step."""
    resolved = resolve(find_cell(cell), "mini")
    trajectory = build_trajectory(resolved)
    stream = trajectory.data.open(folder / "data", 0)
    profile = resolved.ema().profiles()[0]
    tracked = Tracked({profile.name: profile}, [10**9])
    return Trainer(trajectory, resolved.trajectory_hash, stream, folder, tracked, build(resolved.execution))


def plain(trainer: Trainer) -> Callable[[], None]:
    """The step of a loop that is written with PyTorch's own parts, on the trainer's network and data."""
    net, trajectory = trainer.net, trainer.trajectory
    parameters = [p.detach().clone() for p in trainer.weights.parameters]
    for parameter, own in zip(trainer.weights.parameters, parameters, strict=True):
        parameter.data = own
    average = [p.detach().clone() for p in trainer.weights.parameters]
    optimizer = torch.optim.Adam(trainer.weights.parameters, lr=0.0, fused=True)

    def step() -> None:
        torch.manual_seed(trainer.nimg)
        part = trainer._micro_batch(trainer.nimg // trajectory.batch, 0, trajectory.batch)
        optimizer.zero_grad()
        error = trajectory.loss(net, part.images, part.labels, augment=trajectory.augment, draws=part.draws)
        torch.autograd.backward(error.sum() / trajectory.batch)
        torch.nn.utils.clip_grad_norm_(trainer.weights.parameters, 1e9)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in trainer.weights.parameters], 0.01)

    return step


def main() -> None:
    """Print both medians and their ratio."""
    cell = sys.argv[1] if len(sys.argv) > 1 else "edm/table2/e/cifar10-cond-vp"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    torch.set_num_threads(1)
    own_dropout = layers.dropout
    times: dict[str, list[float]] = {"repro": [], "plain": []}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        trainer = prepare(cell, Path(first))
        steps: dict[str, Callable[[], object]] = {"repro": trainer.step, "plain": plain(prepare(cell, Path(second)))}
        for index in range(count + 5):
            for name, step in steps.items():
                layers.dropout = own_dropout if name == "repro" else F.dropout  # type: ignore[assignment]
                begin = time.perf_counter()
                step()
                if index >= 5:
                    times[name].append(time.perf_counter() - begin)
    ours, theirs = (statistics.median(times[name]) for name in ("repro", "plain"))
    print(f"{cell}: {ours * 1e3:.1f} ms, plain {theirs * 1e3:.1f} ms, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()

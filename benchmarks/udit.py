"""How fast U-DiT trains and samples against DiT-XL/2, in interleaved pairs of one run (see the paper's Table 11).

    python benchmarks/udit.py                       heads a third as wide, batch 1, one CPU thread: about three minutes
    python benchmarks/udit.py --only U-DiT-L --pairs 20
    python benchmarks/udit.py --full                the paper's size, on a GPU in bf16: with model-FLOPs utilisation

Prints steps/s and images/s of both, and how many times faster than DiT-XL/2 a network is (the median over pairs, with
its 95 % interval) in a training step (loss, gradient, AdamW) and in an evaluation of the form that is sampled from; an
image takes 250 of these. On a CPU seconds are those of the process. Ratios are what to compare between machines; the
paper's own beside them are of 8 A100 with 256 images a step.

Utilisation: six operations for each multiply-accumulate of an image (forward and backward) in linear layers,
convolutions and attention, of the form with fused feed-forwards, over what this machine's own matrix product reaches in
the same precision. --compile compiles the networks' graphs, as `Execution.compile` does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from skips import interval
from torch import Tensor, nn

from repro.cells import resolve
from repro.config import build
from repro.diffusion.discrete_losses import HybridLoss
from repro.diffusion.draws import StepDraws
from repro.models.counting import cost
from repro.tables import find_cell, load_table
from repro.training.compiling import compile_network
from repro.training.optimizers import AdamW
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights

BASELINE = "DiT-XL/2"
CELLS = {
    BASELINE: "udit/table2/dit-xl-2/imagenet256-400k",
    "U-DiT-B (Vanilla)": "udit/table10/udit-b-vanilla/imagenet256-400k",
    "U-DiT-L (Vanilla)": "udit/table10/udit-l-vanilla/imagenet256-400k",
    "U-DiT-B": "udit/table2/udit-b/imagenet256-400k",
    "U-DiT-L": "udit/table2/udit-l/imagenet256-400k",
}
REDUCED = ("Scale.head_channels = 3",)
"""DiT's heads become 24 channels wide and U-DiT's 8, which RoPE2D can have; nothing else changes."""
EVALUATIONS = 250


class Forms(NamedTuple):
    """A network to run. train, sample: one step and one evaluation of a batch; products: multiply-accumulates."""

    train: Callable[[], Any]
    sample: Callable[[], Any]
    products: int


def prepare(name: str, options: argparse.Namespace) -> Forms:
    """The network of a table's row at the chosen size, with a fixed batch."""
    node = resolve(find_cell(CELLS[name]), "full", () if options.full else REDUCED).trajectory.args["denoiser"]
    torch.manual_seed(0)
    net, device, batch = build(node).to(options.device), options.device, options.batch
    if options.bf16:
        net.model.register_forward_pre_hook(_in_bf16)
    sampled_from = net.eval().inference()
    if options.compile:
        for model in {net.model, sampled_from.model}:
            compile_network(model, device)
    weights = FlatWeights(net)
    optimizer = AdamW().create(weights.vector)
    images = torch.randn(batch, net.img_channels, net.img_resolution, net.img_resolution, device=device)
    labels = torch.eye(net.label_dim, device=device)[torch.arange(batch, device=device) % net.label_dim]
    steps = torch.full((batch,), 500, device=device)

    def train() -> None:
        part = MicroBatch(images, labels, StepDraws(0, 0, batch))
        training_step(net.train(), HybridLoss(), weights, optimizer, [part], lr=1e-4, batch=batch)

    @torch.no_grad()
    def sample() -> Tensor:
        output: Tensor = sampled_from(images, steps, labels)
        return output

    return Forms(train, sample, cost(lambda: build(node.args["model"])).products)


def _in_bf16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of a network with its images in bfloat16, in which its layers then compute; its weights stay float32."""
    return inputs[0].to(torch.bfloat16), *inputs[1:]


def seconds(form: Callable[[], Any], device: str) -> float:
    """Of one call: wall time on a GPU, whose queue is empty before and after; CPU time of the process otherwise."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronise(device)
    begin = clock()
    form()
    synchronise(device)
    return clock() - begin


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def pairs(
    first: Callable[[], Any], second: Callable[[], Any], options: argparse.Namespace
) -> list[tuple[float, float]]:
    """Seconds of both in turn, each first in every other pair; what warms up is not counted."""
    found = []
    for index in range(options.pairs + 1):
        order = (first, second) if index % 2 else (second, first)
        times = {form: seconds(form, options.device) for form in order}
        found.append((times[first], times[second]))
    return found[1:]


def peak(options: argparse.Namespace, size: int = 2048) -> float:
    """Operations a second of this machine's own matrix product in the precision of the run."""
    size = size if options.device == "cpu" else 4 * size
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    a, b = (torch.randn(size, size, device=options.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, options.device) for _ in range(5))


def paper_ratio(name: str) -> str:
    """How much faster than the baseline the paper has it, where its Table 11 has it."""
    printed = {cell.row: cell.reference["training steps/s"] for cell in load_table("udit/table11").cells}
    row = CELLS[name].split("/")[2]
    return f", the paper's {printed[row] / printed['dit-xl-2']:.2f}" if row in printed else ""


def report(name: str, baseline: Forms, options: argparse.Namespace, limit: float) -> None:
    """Lines of one network against the baseline."""
    forms = prepare(name, options)
    for what, operations in (("train", 6), ("sample", 2)):
        times = pairs(getattr(baseline, what), getattr(forms, what), options)
        middle, low, high = interval([first / second for first, second in times])
        middle_times = [sorted(column)[len(times) // 2] for column in zip(*times, strict=True)]
        rates = [options.batch / each / (1 if what == "train" else EVALUATIONS) for each in middle_times]
        reached = operations * options.batch * forms.products / middle_times[1] / limit
        steps = f"{1 / middle_times[1]:.3g} steps/s, " if what == "train" else ""
        print(
            f"{name:18} {'training' if what == 'train' else 'sampling'}: {steps}{rates[1]:.3g} images/s ({BASELINE}: "
            f"{rates[0]:.3g}); {middle:.2f} times as fast [{low:.2f}, {high:.2f}]"
            f"{paper_ratio(name) if what == 'train' else ''}; {reached:.0%} of the matrix product's rate",
            flush=True,
        )


def main() -> None:
    """Print two lines a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's size")
    parser.add_argument("--only", nargs="+", choices=[name for name in CELLS if name != BASELINE])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--batch", type=int, help="images a step (1; on a GPU 32, a GPU's share of the paper's)")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    options.device = "cuda" if options.full and torch.cuda.is_available() else "cpu"
    options.bf16 = options.device == "cuda"
    options.batch = options.batch or (32 if options.bf16 else 1)
    if options.device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    limit = peak(options)
    where = torch.cuda.get_device_name() if options.bf16 else "one CPU thread"
    print(
        f"{'full size' if options.full else 'heads a third as wide'}, batch {options.batch}, {where}, "
        f"{'bf16' if options.bf16 else 'float32'}, matrix product {limit / 1e12:.3g} TFLOP/s"
    )
    baseline = prepare(BASELINE, options)
    begin = seconds(baseline.train, options.device), seconds(baseline.train, options.device)
    reached = 6 * options.batch * baseline.products / begin[1] / limit
    print(f"{BASELINE:18} training: {reached:.0%} of the matrix product's rate", flush=True)
    for name in options.only or list(CELLS)[1:]:
        report(name, baseline, options, limit)


if __name__ == "__main__":
    sys.exit(main())

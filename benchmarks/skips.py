"""What the scaling of long skips costs: a training step of U-ViT-S/2 with it against one without, in interleaved pairs.

    python benchmarks/skips.py                       batch 8, 12 pairs a scaling, about ten minutes on two free cores
    python benchmarks/skips.py --only LS --pairs 40  one of them, with a narrower interval

Prints, for each scaling, the median of the ratios of pairs less 1 with a 95 % interval (of the median, by the binomial
rule for order statistics), and the bound that it should keep: 1 % for constants, 5 % for LS. The exit code is 1 where
an interval lies wholly above its bound; an interval that holds the bound says that there were too few pairs.
Beside it stands the time of the scaling's own operations (forward and backward, six skips) over that of a plain step,
which is measured far more sharply than the difference of two steps.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from repro.diffusion.draws import StepDraws
from repro.diffusion.vp_losses import NoiseLoss
from repro.diffusion.vp_sde import VPDenoiser
from repro.models.skips import ConstantScaling, InverseSqrt2Scaling, LearnableScaling, SkipScaling
from repro.models.uvit import UViT
from repro.training.optimizers import AdamW
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights

BOUNDS: dict[str, tuple[SkipScaling, float]] = {
    "1/sqrt(2)": (InverseSqrt2Scaling(), 0.01),
    "CS": (ConstantScaling(0.5), 0.01),
    "LS": (LearnableScaling(), 0.05),
    "LS a skip": (LearnableScaling(shared=False), 0.05),
}


def stepper(scaling: SkipScaling | None, batch: int) -> Callable[[], float]:
    """A whole training step (loss, gradient, AdamW), which returns its CPU seconds."""
    torch.manual_seed(0)
    net = VPDenoiser(UViT(skip_scaling=scaling)).train()
    weights = FlatWeights(net)
    optimizer = AdamW((0.99, 0.999), weight_decay=0.03).create(weights.vector)
    images = torch.randn(batch, 3, 32, 32)

    def step() -> float:
        part = MicroBatch(images, None, StepDraws(0, 0, batch))
        begin = time.process_time()
        training_step(net, NoiseLoss(), weights, optimizer, [part], lr=2e-4, batch=batch)
        return time.process_time() - begin

    return step


def own_seconds(scaling: SkipScaling, batch: int, rounds: int = 20) -> float:
    """Median CPU seconds of the scaling's operations in a step: forward and backward of the six skips of U-ViT-S/2."""
    skips = scaling.over_tokens(6, 257)
    tensors = [torch.randn(batch, 257, 512, requires_grad=True) for _ in range(6)]
    gradient = torch.randn(batch, 257, 512)
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        for number, tensor in enumerate(tensors, 1):
            scaled = skips(tensor, number)
            if scaled is not tensor:
                torch.autograd.grad(scaled, [tensor, *skips.parameters()], gradient, allow_unused=True)
        times.append(time.process_time() - begin)
    return statistics.median(times)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): a 95 % interval of the median from the order statistics."""
    ordered, n = sorted(values), len(values)
    below = 0
    while below < n // 2 and sum(math.comb(n, k) for k in range(below + 1)) / 2**n <= 0.025:
        below += 1
    return statistics.median(ordered), ordered[max(below - 1, 0)], ordered[n - max(below, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"U-ViT-S/2, batch {options.batch}, {options.threads} thread(s), load average {os.getloadavg()[0]:.1f}")
    plain = stepper(None, options.batch)
    failed = False
    for name in options.only:
        scaling, bound = BOUNDS[name]
        scaled = stepper(scaling, options.batch)
        for step in (plain, scaled):
            step()
        ratios, plains = [], []
        for index in range(options.pairs):
            first, second = (plain, scaled) if index % 2 else (scaled, plain)
            times = {first: first(), second: second()}
            ratios.append(times[scaled] / times[plain] - 1)
            plains.append(times[plain])
        middle, low, high = interval(ratios)
        verdict = "kept" if high <= bound else "NOT KEPT" if low > bound else "within the interval: more pairs decide"
        failed |= low > bound
        print(f"{name:10} {middle:+.2%}  [{low:+.2%}, {high:+.2%}]  bound {bound:.0%}: {verdict}", flush=True)
        share = own_seconds(scaling, options.batch) / statistics.median(plains)
        print(f"{'':10} own operations {share:.2%} of a plain step of {statistics.median(plains):.2f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

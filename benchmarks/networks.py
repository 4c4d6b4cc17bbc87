"""Throughput of each network family, in training and in sampling, against the same network in PyTorch's plain forms.

    python benchmarks/networks.py            at mini: images/s, ratio to the plain form, peak memory
    python benchmarks/networks.py --full     at the paper's size: share of the matrix-product peak
    python benchmarks/networks.py --options  channels-last and compiled graphs against eager (compiles for minutes)

Plain means: `F.conv2d` for every convolution and resampling, `F.dropout`, one tensor a parameter in optimiser and EMA.
Both forms run in turn in one process on one thread; the ratio is what to compare between machines and versions.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import plain, prepare

from repro.cells import resolve
from repro.config import build
from repro.models import layers
from repro.tables import find_cell

FAMILIES = {
    "DDPM++": "edm/table2/e/cifar10-cond-vp",
    "NCSN++": "edm/table2/e/cifar10-cond-ve",
    "ADM": "edm/imagenet64/e-deterministic/imagenet64-adm",
    "EDM2 (G)": "edm2/table1/g/imagenet512",
    "U-DiT-L": "udit/table2/udit-l/imagenet256-400k",
}
STEPS = 40
SAMPLED = 250


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """The layers as PyTorch's own functions compute them."""

    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    with mock.patch.multiple(
        layers, pointwise=convolution, tiny_convolution=convolution, dropout=F.dropout, MATRIX_PIXELS=0
    ):
        yield


def interleaved(forms: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of each form, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for index in range(rounds + warm_up):
        for name, form in forms.items():
            begin = time.perf_counter()
            form()
            if index >= warm_up:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def within(context: Callable[[], Any], form: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with context():
            form()

    return run


def training(cell: str) -> tuple[dict[str, float], int]:
    """Seconds of one step, ours and plain; and the batch."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        trainer, other = prepare(cell, Path(first)), prepare(cell, Path(second))
        forms = {"ours": trainer.step, "plain": within(plain_layers, plain(other))}
        return interleaved(forms, STEPS), trainer.trajectory.batch


def forward(cell: str, scale: str = "mini") -> tuple[Any, tuple[Any, ...]]:
    """The denoiser in evaluation mode, and inputs for it."""
    torch.manual_seed(0)
    net = build(resolve(find_cell(cell), scale).trajectory.args["denoiser"]).eval()
    count = SAMPLED if scale == "mini" else 2
    x = torch.randn(count, net.img_channels, net.img_resolution, net.img_resolution)
    labels = torch.eye(net.label_dim)[torch.arange(count) % net.label_dim] if net.label_dim else None
    return net, (x, torch.tensor(1.0), labels)


def sampling(cell: str) -> dict[str, float]:
    """Seconds of one denoiser call on a batch of `SAMPLED` images, ours and plain."""
    net, inputs = forward(cell)
    with torch.no_grad():
        return interleaved({"ours": lambda: net(*inputs), "plain": within(plain_layers, lambda: net(*inputs))}, 20)


def options(cell: str) -> dict[str, float]:
    """The same call eager, with channels-last tensors, and compiled."""
    net, inputs = forward(cell)
    last, _ = forward(cell)
    last.to(memory_format=torch.channels_last)
    compiled = torch.compile(forward(cell)[0])
    x = inputs[0].contiguous(memory_format=torch.channels_last)
    begin = time.perf_counter()
    with torch.no_grad():
        compiled(*inputs)
        print(f"  compilation {time.perf_counter() - begin:.0f} s", flush=True)
        forms = {
            "eager": lambda: net(*inputs),
            "channels last": lambda: last(x, *inputs[1:]),
            "compiled": lambda: compiled(*inputs),
        }
        return interleaved(forms, 20)


def peak_flops(size: int = 2048) -> float:
    """FLOP/s of this machine's own matrix product, float32, one thread."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, 5)["product"]


def full_size(cell: str) -> tuple[float, float]:
    """(FLOP/s reached, seconds an image) of a forward pass at the paper's size."""
    net, inputs = forward(cell, "full")
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            net(*inputs)
        seconds = interleaved({"forward": lambda: net(*inputs)}, 3, warm_up=1)["forward"]
    return counter.get_total_flops() / seconds, seconds / len(inputs[0])


def main() -> None:
    """Print one line a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--options", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, cell in FAMILIES.items():
        if arguments.full:
            peak = peak_flops()
            reached, seconds = full_size(cell)
            print(
                f"{name}: {reached / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f} ({reached / peak:.0%} of the product's), "
                f"{seconds:.2f} s an image and call"
            )
        elif arguments.options:
            found = options(cell)
            rest = ", ".join(f"{form} {found['eager'] / value:.2f} times" for form, value in found.items())
            print(f"{name}: one call, faster than eager: {rest}")
        else:
            trained, batch = training(cell)
            sampled = sampling(cell)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name}: training {batch / trained['ours']:.0f} images/s, {trained['plain'] / trained['ours']:.2f} "
                f"times plain; sampling {SAMPLED / sampled['ours']:.0f} images/s a call, "
                f"{sampled['plain'] / sampled['ours']:.2f} times plain; peak memory so far {memory:.0f} MB"
            )
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Fingerprints: a few deterministic steps of a cell, in seconds and without training, that no refactoring may move.

The network starts from seeded weights in which every layer counts (a fresh network's residual branches are almost zero and
would hide their faults) and at half of the training's length, where learning rate and EMA have their usual values. Every
constant on the way from data to pixels moves at least one number:

    schedule   learning rate and EMA decay at five points of training
    data       which images the first steps see
    init       size of the weights of a fresh network
    steps      losses and gradient norms of three whole batches
    update     how far weights and EMA moved
    pixels     two images from the moved EMA, by the whole sampler
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repro.cells import Resolved
from repro.config import build
from repro.data.stream import ImageStream
from repro.diffusion.draws import StackedGenerator, StepDraws
from repro.diffusion.precond import Precond
from repro.experiment import Execution
from repro.launch.work import build_trajectory, settle
from repro.training.loop import Tracked, Trainer

STEPS = 3
RTOL = 2e-3
"""Relative tolerance: three Adam steps amplify the rounding of other processors to some 1e-4; a planted fault moves more."""
ATOL = 1e-6


def fingerprint(resolved: Resolved, data_dir: Path) -> dict[str, Any]:
    """The fingerprint of a cell: name -> number, text or list of numbers. Takes a second or two at mini."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trajectory = build_trajectory(resolved)
        stream = trajectory.data.open(data_dir, trajectory.seed)
        init = _size(trajectory.denoiser.parameters())
        seed_weights(trajectory.denoiser)
        start = [p.detach().clone() for p in trajectory.denoiser.parameters()]
        profile = resolved.ema()
        total = resolved.selection().milestones()[-1]
        batch = trajectory.batch
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                trajectory,
                "fingerprint",
                stream,
                Path(folder),
                Tracked({profile.name: profile}, [total]),
                settle(build(resolved.execution)) if resolved.scale != "full" else Execution(device="cpu"),
            )
            trainer.nimg = first = total // 2 // batch * batch
            results = [trainer.step() for _ in range(STEPS)]
        points = [0, batch, trajectory.lr.rampup_nimg // 2, total // 2, total]
        average = trainer.averages[profile.name]
        return {
            "schedule": [value for n in points for value in (trajectory.lr(n), profile.beta(n, batch))],
            "milestones": [len(resolved.selection().milestones()), total, resolved.selection().ranges],
            "data": zlib.crc32(stream.indices(first, STEPS * batch).astype("<i8").tobytes()),
            "images": zlib.crc32(stream.batch(first, batch)[0].numpy().tobytes()),
            "init": init,
            "losses": [loss for result in results for loss in result.losses],
            "grad_norms": [result.grad_norm for result in results],
            "update": _distance(trainer.parameters, start),
            "ema_update": _distance(average, start),
            "labels": _label_draws(stream, trajectory.seed, batch),
            **_pixels(resolved, trajectory.denoiser, average),
        }
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def seed_weights(net: nn.Module) -> None:
    """Give every parameter a value that follows from its name alone, of the size that keeps signals of order 1."""
    for name, parameter in net.named_parameters():
        rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
        value = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
        if parameter.ndim >= 2:
            value /= math.sqrt(math.prod(parameter.shape[1:]))
        elif name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        parameter.copy_(value)


def _pixels(resolved: Resolved, net: Precond, average: list[Tensor]) -> dict[str, Any]:
    """Two images by the cell's sampler from the EMA: means, spreads and the first row of pixels, before quantisation."""
    evaluation = build(resolved.evaluation)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), average, strict=True):
            parameter.copy_(value)
        net.eval()
        generator = StackedGenerator([0, 1])
        shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
        latents = generator.randn(shape, torch.float32)
        labels = torch.eye(net.label_dim)[generator.randint(net.label_dim)] if net.label_dim else None
        calls = 0

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return net(*args, **kwargs)

        for name in ("sigma_min", "sigma_max", "round_sigma"):
            setattr(counted, name, getattr(net, name))
        images = evaluation.sampler(counted, latents, labels, lambda x: generator.randn(tuple(x.shape), x.dtype))
    return {
        "NFE": calls,
        "pixels": images[0, 0, 0].tolist(),
        "pixel_mean": images.mean(dim=(1, 2, 3)).tolist(),
        "pixel_sd": images.std(dim=(1, 2, 3)).tolist(),
    }


def _label_draws(stream: ImageStream, seed: int, batch: int) -> list[float]:
    """Draws of the first step's noise, and labels of its images: the streams of randomness themselves."""
    draws = StepDraws(seed, 0, batch, 0, batch)
    labels = stream.batch(0, batch)[1]
    first = [] if labels is None else labels[:8].tolist()
    return [float(draws.randn((batch, 1), "noise")[0]), float(draws.rand((batch, 1), "sigma")[0]), *first]


def _size(parameters: Iterator[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters))


def _distance(found: list[Any], start: list[Tensor]) -> float:
    return math.sqrt(sum(float((a.detach() - b).double().square().sum()) for a, b in zip(found, start, strict=True)))


def differences(found: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """One line a number that moved beyond the tolerance, or that only one of two fingerprints has."""
    lines = [f"{key} is only in one of them" for key in sorted(set(found) ^ set(reference))]
    for key in sorted(set(found) & set(reference)):
        ours, theirs = _listed(found[key]), _listed(reference[key])
        exact = isinstance(reference[key], int)
        scale = max([abs(value) for value in theirs], default=0.0)
        if len(ours) != len(theirs):
            lines.append(f"{key}: {len(ours)} numbers, were {len(theirs)}")
            continue
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # Lists of pixels are compared relative to their largest, so that a pixel near zero needs no digits.
            allowed = 0.0 if exact else ATOL + RTOL * (scale if key.startswith("pixel") else abs(b))
            if not abs(a - b) <= allowed:
                where = f"{key}[{index}]" if len(ours) > 1 else key
                lines.append(f"{where} is {a:.8g}, was {b:.8g}")
                break
    return lines


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value]

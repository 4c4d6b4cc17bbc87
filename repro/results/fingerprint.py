"""Fingerprints: a few deterministic steps of a cell, in seconds and without training, that no refactoring may move.

The network starts from seeded weights in which every layer counts (a fresh network's residual branches are almost zero
and would hide their faults) and on the ramp, where learning rate and EMA change from step to step. Every constant on
the way from data to a score moves at least one number:

    schedule, milestones    learning rate and EMA decay at five points of training, and where the cell looks
    data, images, draws     which images the first steps see, and the streams of randomness
    init                    size of the weights of a fresh network
    loss_*, optimizer, augment, denoiser, process, skips, sampler_*, preview_*, scores
                            single parts on their own (see `repro.results.probes`, `discrete_probes` and `vp_probes`)
    losses, grad_norms, applied_norms, update, ema_update
                            three whole steps: losses, gradients before and after clipping, moves of weights and EMA
    labels, latents, pixels, quantised
                            two images from the moved EMA, by the whole sampler
    guide_*                 the same of the network that guides, if one does, whose EMA is moved likewise
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.cells import Leg, Resolved
from repro.config import build
from repro.data.stream import ImageStream
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.draws import StepDraws
from repro.diffusion.vp_sde import VPDenoiser
from repro.experiment import Evaluation, Execution, Trajectory
from repro.launch.prompts import PROMPTS_SEED
from repro.launch.work import build_trajectory
from repro.metrics.quantise import beyond_truncation
from repro.results import discrete_probes, probes, vp_probes
from repro.sampling import Network, generate
from repro.training.loop import Tracked, Trainer

STEPS = 3
RTOL = 2e-3
"""Relative tolerance, unless another is given below. Other instruction sets were seen to move pixels by 1.3e-4 and
their mean by 5e-4, what training steps give by 3.4e-5, and the keys below by at most 1e-6, 4e-7 and 0."""
STEPS_RTOL, TIGHT_RTOL, EXACT_RTOL = 5e-4, 1e-4, 1e-7
TOLERANCES = {
    **dict.fromkeys(("losses", "grad_norms", "applied_norms", "update", "ema_update"), STEPS_RTOL),
    **dict.fromkeys(("schedule", "init", "draws", "optimizer", "augment", "denoiser", "latents"), TIGHT_RTOL),
    **dict.fromkeys(("process", "loss_value", "sampler_path", "preview_path", "skips"), TIGHT_RTOL),
    **dict.fromkeys(("sampler_sigma", "sampler_end"), EXACT_RTOL),
}


Shared = dict[tuple[str, str, int], tuple[dict[str, Any], dict[str, Tensor]]]
"""Trajectory, EMA and length -> what their cells have in common: numbers, and the weights to sample from."""


def fingerprint(resolved: Resolved, data_dir: Path, shared: Shared | None = None) -> dict[str, Any]:
    """The fingerprint of a cell: name -> number or list of numbers. Takes about a second at mini, always on the CPU.

    Args:
        shared: filled and used, so that the cells of one trajectory take its steps once.
    """
    with _one_thread():
        shared = {} if shared is None else shared
        evaluation: Evaluation = build(resolved.evaluation)
        (net, stream, numbers), *guides = (_leg(resolved, leg, data_dir, shared) for leg in resolved.legs)
        path = _path(evaluation, net)
        for guide, _, found in guides:
            evaluation.sampler = functools.partial(evaluation.sampler, guide=guide)
            numbers = {**numbers, **{f"guide_{name}": value for name, value in found.items()}}
        selection = evaluation.selection
        prompts = evaluation.prompts
        texts = prompts.open(data_dir, PROMPTS_SEED).contexts_of if prompts else None
        return {
            **numbers,
            "milestones": [len(selection.milestones()), selection.milestones()[-1], selection.ranges],
            **path,
            "scores": probes.scores(evaluation.protocol, stream),
            **_pixels(evaluation, net, texts),
        }


def _leg(resolved: Resolved, leg: Leg, data_dir: Path, shared: Shared) -> tuple[Network, ImageStream, dict[str, Any]]:
    """(network with the weights of the EMA after three steps, data, numbers) of a training run."""
    trajectory, profile = build_trajectory(leg), build(leg.ema)
    stream = trajectory.data.open(data_dir, trajectory.seed)
    total = leg.milestones[-1]
    key = (leg.trajectory_hash, profile.name, total)
    if key not in shared:
        execution = dataclasses.replace(build(resolved.execution), device="cpu")
        numbers = _of_trajectory(trajectory, profile, stream, total, execution)
        shared[key] = numbers, {name: value.clone() for name, value in trajectory.denoiser.state_dict().items()}
    numbers, state = shared[key]
    trajectory.denoiser.load_state_dict(state)
    return trajectory.denoiser, stream, numbers


def _of_trajectory(
    trajectory: Trajectory, profile: Any, stream: ImageStream, total: int, execution: Execution
) -> dict[str, Any]:
    """All that the trajectory and the EMA decide. Leaves the network with the weights of the EMA after three steps."""
    net, batch = trajectory.denoiser, trajectory.batch
    init = _size(net.parameters())
    seed_weights(net)
    first = total // 40 // batch * batch
    points = [0, batch, first, total // 2, total]
    return {
        "schedule": [value for n in points for value in (trajectory.lr(n), profile.beta(n, batch))],
        "data": zlib.crc32(stream.indices(first, STEPS * batch).astype("<i8").tobytes()),
        "images": zlib.crc32(stream.batch(first, batch)[0].numpy().tobytes()),
        "draws": _draws(stream, trajectory.seed, batch),
        "init": init,
        **_network(trajectory),
        "optimizer": probes.optimizer(trajectory),
        "augment": probes.augmentation(trajectory, stream),
        **_training(trajectory, profile, stream, first, total, execution),
    }


def _network(trajectory: Trajectory) -> dict[str, Any]:
    """Network and loss on their own."""
    net = trajectory.denoiser
    if isinstance(net, DiscreteDenoiser):
        found = discrete_probes.losses(trajectory.loss, net)
        return {**found, "process": discrete_probes.process(net), "denoiser": discrete_probes.denoiser(net)}
    if isinstance(net, VPDenoiser):
        found = {"process": vp_probes.process(net), "skips": vp_probes.skips(net)}
        return {**vp_probes.losses(trajectory.loss, net), **found, "denoiser": vp_probes.denoiser(net)}
    return {**probes.noise_levels(trajectory.loss), "denoiser": probes.denoiser(net)}


def _path(evaluation: Evaluation, net: Network) -> dict[str, Any]:
    """The sampler on its own."""
    if isinstance(net, DiscreteDenoiser):
        return discrete_probes.sampler(evaluation.sampler, net)
    if isinstance(net, VPDenoiser):
        found = vp_probes.sampler(evaluation.sampler, net)
        if evaluation.preview is not None:
            preview = vp_probes.sampler(evaluation.preview.sampler, net)
            found |= {name.replace("sampler", "preview"): values for name, values in preview.items()}
        return found
    return probes.sampler(evaluation.sampler, net, guided=evaluation.guide is not None)


@torch.no_grad()
def seed_weights(net: nn.Module) -> None:
    """Give every parameter a value that follows from its name alone, of the size that keeps signals of order 1."""
    for name, parameter in net.named_parameters():
        value = probes.fixed_normal(tuple(parameter.shape), zlib.crc32(name.encode()))
        if parameter.ndim >= 2:
            value /= math.sqrt(math.prod(parameter.shape[1:]))
        elif name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        parameter.copy_(value)


def _training(
    trajectory: Trajectory, profile: Any, stream: ImageStream, first: int, total: int, execution: Execution
) -> dict[str, Any]:
    """Three steps from `first` images on by the real loop. Leaves the network with the weights of the EMA."""
    net = trajectory.denoiser
    start = [p.detach().clone() for p in net.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        tracked = Tracked({profile.name: profile}, [total])
        trainer = Trainer(trajectory, "fingerprint", stream, Path(folder), tracked, execution)
        trainer.nimg = first
        results, applied = [], []
        for _ in range(STEPS):
            results.append(trainer.step())
            assert trainer.weights.vector.grad is not None
            applied.append(_size([trainer.weights.vector.grad]))
    average = trainer.weights.split(trainer.averages[profile.name])
    found = {
        "losses": [result.loss for result in results],
        "grad_norms": [result.grad_norm for result in results],
        "applied_norms": applied,
        "update": _distance(trainer.weights.parameters, start),
        "ema_update": _distance(average, start),
    }
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), average, strict=True):
            parameter.copy_(value)
    return found


def _pixels(evaluation: Evaluation, net: Network, texts: Callable[[Sequence[int]], Tensor] | None) -> dict[str, Any]:
    """Two images as an evaluation makes them: labels, noise, and means, spreads and first row before quantisation."""
    seen: dict[str, Any] = {}

    def sampler(net: Any, latents: Tensor, labels: Tensor | None, *rest: Any) -> Tensor:
        images = evaluation.sampler(net, latents, labels, *rest)
        seen["latents"] = latents.flatten()[:4].tolist()
        told = labels if labels is None or texts else labels.argmax(1)
        seen["labels"] = [] if told is None else told.flatten()[:4].tolist()
        seen["pixels"] = images[0, 0, 0].tolist()
        seen["pixel_mean"] = images.mean(dim=(1, 2, 3)).tolist()
        seen["pixel_sd"] = images.std(dim=(1, 2, 3)).tolist()
        # What is quantised is a ramp: a seeded network's pixels lie beyond white and black.
        return torch.linspace(-1.1, 1.1, images.numel(), dtype=torch.float64).reshape(images.shape)

    rule: Any = evaluation.protocol.labels
    quantise = beyond_truncation(evaluation.protocol.quantise)
    quantised = generate(net.eval(), sampler, [3, 11], labels=rule, contexts=texts, quantise=quantise).images
    return {**seen, "quantised": zlib.crc32(quantised.numpy().tobytes())}


def _draws(stream: ImageStream, seed: int, batch: int) -> list[float]:
    """The first step's first draws of noise and noise level, and the classes of its images."""
    draws = StepDraws(seed, 0, batch, 0, batch)
    labels = stream.batch(0, batch)[1]
    first = [] if labels is None else labels[:8].tolist()
    if stream.view.context_shape:
        first = stream.contexts(0, batch)[:4, 0, 0].tolist()
    return [float(draws.randn((batch, 1), "noise")[0]), float(draws.rand((batch, 1), "sigma")[0]), *first]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _size(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def _distance(found: Iterable[Tensor], start: Iterable[Tensor]) -> float:
    return _size(a.detach() - b for a, b in zip(found, start, strict=True))


def differences(found: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """One line a key of which a number moved beyond its tolerance, or that only one of two fingerprints has."""
    lines = [f"{key} is only in one of them" for key in sorted(set(found) ^ set(reference))]
    for key in sorted(set(found) & set(reference)):
        ours, theirs = _listed(found[key]), _listed(reference[key])
        if len(ours) != len(theirs):
            lines.append(f"{key}: {len(ours)} numbers, were {len(theirs)}")
            continue
        for index, (a, b, allowed) in enumerate(zip(ours, theirs, _allowed(key, theirs), strict=True)):
            if not abs(a - b) <= allowed:  # also where one of them is nan
                where = f"{key}[{index}]" if len(ours) > 1 else key
                lines.append(f"{where} is {a:.8g}, was {b:.8g}")
                break
    return lines


def _allowed(key: str, reference: list[float]) -> list[float]:
    """The largest difference that is rounding, number by number. Integers are exact."""
    key = key.removeprefix("guide_")
    rtol = TOLERANCES.get(key, RTOL)
    # Pixels are compared relative to the largest of their list, so that one near zero needs no digits.
    largest = max(map(abs, reference), default=0.0)
    sizes = [largest if key.startswith("pixel") else abs(value) for value in reference]
    return [0.0 if isinstance(value, int) else rtol * size for value, size in zip(reference, sizes, strict=True)]


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value]

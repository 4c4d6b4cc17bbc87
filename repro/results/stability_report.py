"""The stability report: `repro.results.stability` on cells, fresh, in training, or trained; as a table and a figure."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from repro.cells import Resolved
from repro.config import build
from repro.data.stream import ImageStream
from repro.diffusion.discrete import q_sample
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.draws import derive_seed
from repro.diffusion.images import from_uint8
from repro.diffusion.precond import Precond
from repro.diffusion.vp_losses import diffuse
from repro.diffusion.vp_sde import VPDenoiser
from repro.errors import UsageError
from repro.launch.plan import Folders
from repro.launch.work import build_trajectory, settle
from repro.models.u_shape import u_shape
from repro.results.plotting import COLOURS, MARKERS
from repro.results.stability import POWER_STEPS, Measured, Probe, measure, oscillation
from repro.training import snapshots
from repro.training.loop import Tracked, Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBED = 8
DISTANCE = 0.05
"""L2 norm of the perturbation of an image."""
WINDOW = 10
"""Points of a curve over which an oscillation is taken."""
Network = Precond | DiscreteDenoiser | VPDenoiser


@dataclasses.dataclass(frozen=True)
class Curve:
    """One cell's measurements.

    points: (images seen, measured), the first of the fresh network; parts: names of the decoder's parts.
    """

    cell: str
    parts: list[str]
    points: list[tuple[int, Measured]]

    @property
    def first(self) -> Measured:
        return self.points[0][1]

    @property
    def last(self) -> Measured:
        return self.points[-1][1]

    def oscillations(self, window: int = WINDOW) -> list[tuple[float, float]]:
        """Of each decoder part's batch-mean norm over the last points of training; nan where there are too few."""
        trained = [measured.decoder_norms.mean(1) for _, measured in self.points[1:]][-window:]
        return [oscillation([float(norms[part]) for norms in trained]) for part in range(len(self.parts))]


def probe_of(net: Network, stream: ImageStream, count: int = PROBED) -> Probe:
    """A fixed batch for a denoiser: its data's first images at noise levels spread over its own range.

    The target is what the raw network should answer, so that the loss has no weighting.
    """
    generator = torch.Generator().manual_seed(derive_seed("stability probe"))
    images, labels = stream.batch(0, count)
    y = from_uint8(images) if images.dtype == torch.uint8 else images
    noise = torch.randn(y.shape, generator=generator)
    delta = torch.randn(y.shape, generator=generator)
    delta = DISTANCE * delta / delta.flatten(1).norm(dim=1)[:, None, None, None]
    hot = None if labels is None else nn.functional.one_hot(labels, net.label_dim).float()
    share = (torch.arange(count) + 0.5) / count
    if isinstance(net, VPDenoiser):
        t = share.to(torch.float64)
        x = diffuse(net, y, t, noise)
        condition = stream.contexts(0, count) if net.context_shape else hot
        time = (t * net.process.time_factor).float()
        return Probe(x, time, noise if net.target == "noise" else y, delta, net.condition_of(condition, x))
    if isinstance(net, DiscreteDenoiser):
        t = (share * len(net.process)).long()
        x = q_sample(net.process, y, t, noise)
        return Probe(x, t, noise, delta, None if labels is None else labels)
    sigma = (1.2 * torch.special.ndtri(share) - 1.2).exp().clamp(net.sigma_min, net.sigma_max)[:, None, None, None]
    c_skip, c_out, c_in, c_noise = net.coefficients(sigma)
    noisy = y + sigma * noise
    target = (y - c_skip * noisy) / c_out
    return Probe(c_in * noisy, c_noise.flatten(), target, delta, hot)


def study(
    resolved: Resolved,
    folders: Folders,
    *,
    steps: int = 0,
    every: int = 10,
    say: Callable[[str], None] = lambda line: None,
) -> Curve:
    """The measurements of one cell: of the fresh network, and of the trained one where it is there.

    Args:
        folders: where runs and data lie.
        steps: train that many steps first, in no folder of runs, and measure the weights themselves; 0 takes the
            averaged weights at the cell's milestones, as far as runs have them.
        every: steps between measurements.
        say: told what is done.

    Raises:
        UsageError: a network without long skips.
        MissingPrerequisite: its data are not there.
    """
    execution = settle(build(resolved.execution))
    if execution.threads:
        torch.set_num_threads(execution.threads)
    trajectory = build_trajectory(resolved)
    net: Network = trajectory.denoiser.eval()
    model = net.model
    parts = [part.name for part in u_shape(model).decoder]
    stream = trajectory.data.open(folders.data, trajectory.seed)
    if stream.empty_context is not None and isinstance(net, VPDenoiser):
        net.empty_context = stream.empty_context
    probe = probe_of(net, stream)
    points = [(0, measure(model, probe, POWER_STEPS))]
    if steps:
        found = _in_training(trajectory, stream, probe, execution, steps, every, lambda: say(resolved.cell.name))
        return Curve(resolved.cell.name, parts, points + found)
    ema = resolved.ema()
    for milestone in resolved.selection().milestones():
        for runs in folders.readable:
            folder = runs / resolved.run
            if all(
                snapshots.path(folder, time, p.name).exists() for p in ema.profiles() for time in ema.times(milestone)
            ):
                say(f"{resolved.cell.name} at {milestone / 1000:g} kimg")
                ema.load(folder, resolved.trajectory_hash, milestone, net)
                points.append((milestone, measure(model, probe, POWER_STEPS)))
                break
    return Curve(resolved.cell.name, parts, points)


def _in_training(
    trajectory: Any, stream: ImageStream, probe: Probe, execution: Any, steps: int, every: int, say: Callable[[], None]
) -> list[tuple[int, Measured]]:
    """Measurements of the weights themselves after every few of the first steps of training."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tracked = Tracked({}, [steps * trajectory.batch])
        execution = dataclasses.replace(execution, device="cpu")
        trainer = Trainer(trajectory, "stability", stream, Path(folder), tracked, execution)
        for step in range(1, steps + 1):
            trainer.step()
            if step % every == 0 or step == steps:
                say()
                trainer.net.eval()
                found.append((step * trajectory.batch, measure(trajectory.denoiser.model, probe)))
                trainer.net.train()
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; nan where there are fewer than three values, or all of one are equal."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    a, b = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One line a cell: coefficients, and what they are held to decide."""
    found = []
    for curve in curves:
        spread = [pair for pair in curve.oscillations() if not math.isnan(pair[0])]
        gain = curve.last.largest_gain
        found.append(
            {
                "cell": curve.cell,
                "skips": len(curve.last.coefficients),
                "images": curve.points[-1][0],
                "sum of kappa^2, fresh": curve.first.sum_squares,
                "sum of kappa^2": curve.last.sum_squares,
                "squared norm, fresh": float(curve.first.decoder_norms.square().mean()),
                "squared norm": float(curve.last.decoder_norms.square().mean()),
                "oscillation, largest": max((pair[0] for pair in spread), default=math.nan),
                "oscillation, mean": sum(p[0] for p in spread) / len(spread) if spread else math.nan,
                "gradient, fresh": curve.first.gradient,
                "gradient": curve.last.gradient,
                "gain": float(curve.last.gain.mean()),
                "largest gain": math.nan if gain is None else float(gain.mean()),
            }
        )
    return found


def layers(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One line a skip and its decoder part: coefficient, norm, oscillation, gradient."""
    found = []
    for curve in curves:
        count, moves = len(curve.parts), curve.oscillations()
        gradients = curve.last.block_gradients[-count:]
        for part, name in enumerate(curve.parts):
            skip = count - part
            found.append(
                {
                    "cell": curve.cell,
                    "part": name,
                    "skip": skip,
                    "kappa": curve.last.coefficients[skip - 1],
                    "sd of kappa": curve.last.spread[skip - 1],
                    "kappa, fresh": curve.first.coefficients[skip - 1],
                    "norm, fresh": float(curve.first.decoder_norms[part].mean()),
                    "norm": float(curve.last.decoder_norms[part].mean()),
                    "oscillation": moves[part][0],
                    "sd of steps": moves[part][1],
                    "gradient": float(gradients[part]),
                }
            )
    return found


def correlations(curves: Sequence[Curve]) -> dict[str, float]:
    """Rank correlations over the cells of the fresh sum of squares with what the theory bounds by it."""
    table = rows(curves)
    squares = [line["sum of kappa^2, fresh"] for line in table]
    return {
        name: rank_correlation(squares, [line[name] for line in table])
        for name in ("squared norm, fresh", "gradient", "oscillation, mean", "gain")
    }


def draw(curves: Sequence[Curve]) -> Figure:
    """Coefficients by skip, norms by part, and norms, gradient, gain and loss over training."""
    from matplotlib.figure import Figure  # heavy
    from matplotlib.ticker import FuncFormatter

    if not curves:
        raise UsageError("no cell to draw")
    figure = Figure(figsize=(13.5, 7.2), layout="constrained")
    panels = figure.subplots(2, 3)
    for index, curve in enumerate(curves):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 3.5}
        style |= {"linewidth": 1.2, "label": _short(curve, curves)}
        numbers = range(1, len(curve.last.coefficients) + 1)
        panels[0][0].errorbar(numbers, curve.last.coefficients, yerr=curve.last.spread, capsize=2, **style)
        panels[0][1].plot(range(1, len(curve.parts) + 1), curve.last.decoder_norms.mean(1), **style)
        images = [nimg / 1000 for nimg, _ in curve.points]
        _over(panels[0][2], images, [m.decoder_norms[-1] for _, m in curve.points], style)
        _over(panels[1][0], images, [torch.tensor([m.gradient]) for _, m in curve.points], style)
        _over(panels[1][1], images, [m.gain for _, m in curve.points], style)
        _over(panels[1][2], images, [torch.tensor([m.loss]) for _, m in curve.points], style)
    titles = (
        ("coefficient of skip i (1 is the outermost)", "skip i", "kappa, mean and sd"),
        ("feature norm by decoder part", "part, in running order", "L2 norm"),
        ("feature norm of the last decoder part", "kimg", "L2 norm, mean and range"),
        ("gradient norm of the probe's loss", "kimg", "L2 norm"),
        ("response to a perturbed input", "kimg", "change of output / of input"),
        ("loss on the probe", "kimg", "mean squared error"),
    )
    for axes, (title, x, y) in zip(panels.flat, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    for axes in (panels[0][0], panels[0][1]):
        axes.xaxis.get_major_locator().set_params(integer=True)
    tables, columns = (dict.fromkeys(curve.cell.rsplit("/", 2)[at] for curve in curves) for at in (0, 2))
    figure.suptitle(f"{', '.join(tables)}: {', '.join(columns)}", fontsize=11)
    panels[0][0].set_yscale("log")
    for set_formatter in (panels[0][0].yaxis.set_major_formatter, panels[0][0].yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0][0].legend(fontsize=8)
    return figure


def _over(axes: Axes, images: Sequence[float], values: Sequence[Tensor], style: dict[str, Any]) -> None:
    """Mean over the batch against images seen, with its range as a band."""
    axes.plot(images, [float(v.mean()) for v in values], **style)
    if len(images) > 1 and values[0].numel() > 1:
        low, high = ([float(f(v)) for v in values] for f in (torch.min, torch.max))
        axes.fill_between(images, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _short(curve: Curve, curves: Sequence[Curve]) -> str:
    """The row of a cell, with its column where several are drawn."""
    row, column = curve.cell.split("/")[-2:]
    return row if len({other.cell.split("/")[-1] for other in curves}) == 1 else f"{row}, {column}"

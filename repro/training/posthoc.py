"""Averages of any length after training, from the stored snapshots of a few (Karras et al. 2024, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.training import snapshots
from repro.training.ema import PowerEMA
from repro.training.power_profile import MAX_STD, Array, profile_errors, reliable_range, solve_coefficients

ERROR_LIMIT = 0.025
"""Greatest error of a reconstructed profile (`profile_errors`). The published snapshots, 32 Mi images apart, have 0.023
and 0.015 at the ends of the range that the paper uses, std 0.015 and 0.250."""


@dataclasses.dataclass
class PostHocEMA:
    """An EMA of a length that training did not track, reconstructed from snapshots of those that it did.

    Args:
        std: relative width of the profile.
        tracked: widths of the averages that training tracks.
        interval_nimg: images between snapshots; also the step in which `snapshots` thins them out.
        snapshots: how many of each tracked average are enough: with twice as many or more, only every second, third
            and so on is kept and used. 0 keeps all.
    """

    UNITS = {"interval_nimg": "interval"}
    NEUTRAL = {"snapshots": 0}

    std: float = 0.1
    tracked: Sequence[float] = (0.05, 0.1)
    interval_nimg: int = 8 * 2**20
    snapshots: int = 0

    def __post_init__(self) -> None:
        if self.snapshots < 0:
            raise UsageError(f"PostHocEMA.snapshots must be 0 or more, not {self.snapshots}")
        if self.interval_nimg < 1:
            raise UsageError(f"PostHocEMA.interval_nimg must be 1 or more, not {self.interval_nimg}")
        for name, std in (("std", self.std), *(("tracked", std) for std in self.tracked)):
            if not 0 < std < MAX_STD:
                raise UsageError(f"PostHocEMA.{name} must be above 0 and below {MAX_STD:.4f}, not {std}")

    @property
    def name(self) -> str:
        """Name of the average in file names; equal for equal settings."""
        tracked = "+".join(PowerEMA(std).name.removeprefix("std") for std in self.tracked)
        thinned = f"-about-{self.snapshots}" if self.snapshots else ""
        return f"posthoc-{PowerEMA(self.std).name}-from-{tracked}-every-{self.interval_nimg}{thinned}"

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Decay with which the average would be tracked directly, for fingerprints: training tracks `profiles`."""
        return PowerEMA(self.std).beta(cur_nimg, batch)

    def profiles(self) -> list[PowerEMA]:
        """The running averages that training has to keep."""
        return [PowerEMA(std) for std in self.tracked]

    def times(self, milestone: int) -> list[int]:
        """Images at which snapshots have to be kept for an average at `milestone`, increasing; the last is it."""
        count = -(-milestone // self.interval_nimg)
        step = self.interval_nimg * (max(1, count // self.snapshots) if self.snapshots else 1)
        return [*range(step, milestone, step), milestone]

    def load(self, folder: Path, trajectory: str, milestone: int, net: nn.Module) -> dict[str, str]:
        """Reconstruct the average at `milestone` from a trajectory's folder into `net`; returns the latest metadata.

        Raises:
            MissingPrerequisite: a snapshot is missing (named).
            CorruptData: a snapshot cannot be read, or is of another trajectory or network.
            UsageError: the snapshots do not determine an average of this length (says which they do).
        """
        found = [
            open_snapshot(snapshots.path(folder, time, profile.name), trajectory, profile.std)
            for time in self.times(milestone)
            for profile in self.profiles()
        ]
        buffers = frozenset(name for name, _ in net.named_buffers())
        snapshots.fill(net, reconstruct(found, [self.std], buffers)[0], found[-1].file)
        return found[-1].meta


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A stored average: its end in images, its width, where it lies, its metadata, and how to read its tensors."""

    nimg: int
    std: float
    file: Path
    meta: dict[str, str]
    read: Callable[[], dict[str, Tensor]]


def open_snapshot(file: Path, trajectory: str, std: float) -> Snapshot:
    """A snapshot by its file; its tensors are not read yet. Errors: see `PostHocEMA.load`."""
    if not file.exists():
        raise MissingPrerequisite(
            f"{file}: this snapshot is missing, and the average cannot be reconstructed without it; "
            "train the trajectory anew under another --runs folder"
        )

    def read() -> dict[str, Tensor]:
        try:
            with safetensors.safe_open(file, framework="pt") as stream:
                return {key: stream.get_tensor(key) for key in stream.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise CorruptData(f"{file}: cannot be read ({error})") from None

    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            meta = dict(stream.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptData(f"{file}: cannot be read ({error})") from None
    if meta.get("trajectory") != trajectory:
        raise CorruptData(f"{file}: holds weights of another trajectory")
    return Snapshot(int(meta["nimg"]), std, file, meta, read)


def coefficients(times: Array, stds: Array, targets: Sequence[float], limit: float = ERROR_LIMIT) -> Array:
    """Coefficients of snapshots, (S, R), for averages of widths `targets` at the time of the latest snapshot.

    Raises:
        UsageError: a target's profile would be off by more than `limit`; names the range that the snapshots determine.
    """
    end = float(times.max())
    ends, widths = np.full(len(targets), end), np.array(targets, dtype=np.float64)
    errors = profile_errors(times, stds, ends, widths)
    for std, error in zip(targets, errors, strict=True):
        if error > limit:
            possible = reliable_range(times, stds, end, limit)
            which = f"std {possible[0]:.3f} to {possible[1]:.3f}" if possible else "none other than those stored"
            raise UsageError(
                f"an EMA of std {std:g} does not follow from {len(times)} snapshots to {end:,.0f} images: its profile "
                f"would be off by {error:.2%}, {limit:.2%} is allowed; possible: {which}"
            )
    return solve_coefficients(times, stds, ends, widths)


def reconstruct(
    found: Sequence[Snapshot],
    targets: Sequence[float],
    buffers: frozenset[str] = frozenset(),
    limit: float = ERROR_LIMIT,
) -> list[dict[str, Tensor]]:
    """State dicts, float32, of averages of widths `targets` at the time of the latest snapshot; each file is read once.

    found: snapshots in any order; of those of one time and width the last one counts. buffers: see `weighted_sums`.
    Raises UsageError as `coefficients`.
    """
    distinct = {(snapshot.nimg, snapshot.std): snapshot for snapshot in found}
    ordered = [distinct[key] for key in sorted(distinct)]
    times = np.array([snapshot.nimg for snapshot in ordered], dtype=np.float64)
    stds = np.array([snapshot.std for snapshot in ordered], dtype=np.float64)
    matrix = coefficients(times, stds, targets, limit)
    return weighted_sums((snapshot.read() for snapshot in ordered), matrix, buffers)


def weighted_sums(
    states: Iterable[Mapping[str, Tensor]], matrix: Array, buffers: frozenset[str] = frozenset()
) -> list[dict[str, Tensor]]:
    """sum_i matrix[i, r] states[i] for each r, accumulated in float32 (float64 where states are) in the given order.

    buffers: names that are no weights; they are taken from the last state.
    """
    sums: list[dict[str, Tensor]] = [{} for _ in range(matrix.shape[1])]
    for row, state in zip(matrix, states, strict=True):
        for name, value in state.items():
            fixed = name in buffers or not value.is_floating_point()
            for total, coefficient in zip(sums, row.tolist(), strict=True):
                if fixed:
                    total[name] = value.clone()
                elif name not in total:
                    total[name] = _single(value) * coefficient
                else:
                    total[name].add_(_single(value), alpha=coefficient)
    return sums


def _single(value: Tensor) -> Tensor:
    """In float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def published_nimg(kimg: int) -> int:
    """Images of a published snapshot whose file name says `kimg`: the multiple of 1024 that rounds down to it."""
    return (1000 * kimg + 999) // 1024 * 1024

"""Exponential moving averages of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.training import snapshots
from repro.training.power_profile import gamma_from_std, power_beta


class RunningEMA:
    """An average that training keeps itself: what an evaluation asks of any EMA (see also `repro.training.posthoc`)."""

    @property
    def name(self) -> str:
        """Name of the average in file names; equal for equal settings."""
        raise NotImplementedError

    def profiles(self) -> list[Profile]:
        """The running averages that training has to keep: this one."""
        return [self]  # type: ignore[list-item]

    def times(self, milestone: int) -> list[int]:
        """Images at which snapshots have to be kept for the average at `milestone`, increasing; the last is it."""
        return [milestone]

    def load(self, folder: Path, trajectory: str, milestone: int, net: nn.Module) -> dict[str, str]:
        """Load the average at `milestone` from a trajectory's folder into `net`; returns the snapshot's metadata.

        Raises:
            CorruptData: see `snapshots.load`.
        """
        return snapshots.load(snapshots.path(folder, milestone, self.name), trajectory, net)


class HalfLifeEMA(RunningEMA):
    """EMA whose half-life is counted in images (EDM; Karras et al. 2022, appendix F.2 and the published loop).

    Args:
        halflife_nimg: half-life in images.
        rampup_ratio: the half-life is limited to this share of the images seen; None for no ramp-up.
    """

    UNITS = {"halflife_nimg": "halflife"}

    def __init__(self, halflife_nimg: int = 500_000, rampup_ratio: float | None = 0.05) -> None:
        self.halflife_nimg = halflife_nimg
        self.rampup_ratio = rampup_ratio

    @property
    def name(self) -> str:
        """Name of the profile in file names; equal for equal settings."""
        ramp = "" if self.rampup_ratio is None else f"-ramp{self.rampup_ratio!r}"
        return f"halflife{self.halflife_nimg}{ramp}"

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Decay of a step of `batch` images when `cur_nimg` were seen before it. 0 at the first step of a ramp."""
        halflife = float(self.halflife_nimg)
        if self.rampup_ratio is not None:
            halflife = min(halflife, self.rampup_ratio * cur_nimg)
        return 0.5 ** (batch / max(halflife, 1e-8))

    def settings(self) -> dict[str, Any]:
        """What `from_settings` makes an equal profile of: plain values, for checkpoints."""
        return {"class": "HalfLifeEMA", "halflife_nimg": self.halflife_nimg, "rampup_ratio": self.rampup_ratio}


class TraditionalEMA(HalfLifeEMA):
    """EMA of constant half-life as in EDM2's code: `HalfLifeEMA` but for a ramp that follows the images after the step.

    Args:
        halflife_nimg: half-life in images; EDM2's configuration A has 50 million.
        rampup_ratio: the half-life is limited to this share of the images seen; None for no ramp-up.
    """

    def __init__(self, halflife_nimg: int = 50_000_000, rampup_ratio: float | None = 0.09) -> None:
        super().__init__(halflife_nimg, rampup_ratio)

    @property
    def name(self) -> str:
        return f"traditional-{super().name}"

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Decay of a step of `batch` images when `cur_nimg` were seen before it."""
        return super().beta(cur_nimg + batch, batch)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "class": "TraditionalEMA"}


class PowerEMA(RunningEMA):
    """Power-function EMA: its length is a constant share of the training so far (Karras et al. 2024, section 3.1).

    Args:
        std: relative width of the profile, above 0 and below 0.2887.
    """

    def __init__(self, std: float = 0.05) -> None:
        self.std = std
        self.gamma = gamma_from_std(std)

    @property
    def name(self) -> str:
        """Name of the profile in file names; equal for equal settings."""
        return f"std{self.std:.3f}" if self.std == round(self.std, 3) else f"std{self.std!r}"

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Decay of a step of `batch` images when `cur_nimg` were seen before it; 0 at the first step."""
        return power_beta(self.gamma, cur_nimg + batch, batch)

    def settings(self) -> dict[str, Any]:
        """What `from_settings` makes an equal profile of: plain values, for checkpoints."""
        return {"class": "PowerEMA", "std": self.std}


class ConstantEMA(RunningEMA):
    """EMA of constant decay 1 - batch / length_nimg, without ramp-up (DiT, U-DiT: e = 0.9999 e + 0.0001 w a step).

    Args:
        length_nimg: images over which the weights of the past decay to 1/e; 2,560,000 is a decay of 0.9999 a step of
            256 images.
    """

    UNITS = {"length_nimg": "halflife"}

    def __init__(self, length_nimg: float = 2_560_000) -> None:
        self.length_nimg = length_nimg

    @property
    def name(self) -> str:
        """Name of the profile in file names; equal for equal settings."""
        length = float(self.length_nimg)
        return f"constant{int(length) if length.is_integer() else length!r}"

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Decay of a step of `batch` images, whatever was seen before; 0 for a batch longer than the average."""
        return max(1 - batch / self.length_nimg, 0.0)

    def settings(self) -> dict[str, Any]:
        """What `from_settings` makes an equal profile of: plain values, for checkpoints."""
        return {"class": "ConstantEMA", "length_nimg": self.length_nimg}


Profile = HalfLifeEMA | PowerEMA | ConstantEMA
"""A running average: `name`, `beta(cur_nimg, batch)` and `settings()`."""


def from_settings(settings: Mapping[str, Any]) -> Profile:
    """The profile that `settings()` described. Raises KeyError for a class that this version does not know."""
    kinds: dict[str, type[Profile]] = {
        "ConstantEMA": ConstantEMA,
        "HalfLifeEMA": HalfLifeEMA,
        "TraditionalEMA": TraditionalEMA,
        "PowerEMA": PowerEMA,
    }
    return kinds[settings["class"]](**{key: value for key, value in settings.items() if key != "class"})


@torch.no_grad()
def update(average: Tensor, weights: Tensor, beta: float) -> None:
    """In place: average <- beta average + (1 - beta) weights."""
    average.lerp_(weights, 1 - beta)

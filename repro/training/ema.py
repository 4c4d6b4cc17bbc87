"""Exponential moving averages of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class HalfLifeEMA:
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


def from_settings(settings: Mapping[str, Any]) -> HalfLifeEMA:
    """The profile that `settings()` described. Raises KeyError for a class that this version does not know."""
    kinds = {"HalfLifeEMA": HalfLifeEMA}
    return kinds[settings["class"]](**{key: value for key, value in settings.items() if key != "class"})


@torch.no_grad()
def update(average: Tensor, weights: Tensor, beta: float) -> None:
    """In place: average <- beta average + (1 - beta) weights."""
    average.lerp_(weights, 1 - beta)

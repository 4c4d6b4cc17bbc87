"""Learning-rate schedules: functions of images seen, never of the run's length: longer runs continue shorter ones."""

from __future__ import annotations

import math

from repro.errors import positive


class LinearRampup:
    """Linear ramp from 0 to `lr` over `rampup_nimg` images, then constant (EDM; Karras et al. 2022, Table 7).

    The very first step has learning rate 0, as in the published loop.
    """

    UNITS = {"rampup_nimg": "images"}

    def __init__(self, lr: float, rampup_nimg: int = 10_000_000) -> None:
        self.lr = positive("LinearRampup.lr", lr)
        self.rampup_nimg = rampup_nimg

    def __call__(self, cur_nimg: int) -> float:
        """Learning rate of the step before which `cur_nimg` images were seen."""
        return self.lr * min(cur_nimg / max(self.rampup_nimg, 1e-8), 1.0)


class InverseSqrtDecay:
    """Linear ramp to `lr`, then decay with the inverse square root of images seen (Karras et al. 2024, Equation 67).

    lr / sqrt(max(n / decay_nimg, 1)) min(n / rampup_nimg, 1) for n images seen before the step. With a ramp the very
    first step has learning rate 0, as in the published loop.

    Args:
        lr: reference learning rate.
        decay_nimg: images at which the decay sets in: the paper's t_ref, which is in steps, times the batch. None or 0
            for a constant rate.
        rampup_nimg: length of the ramp in images; 0 for none.
    """

    UNITS = {"decay_nimg": "images", "rampup_nimg": "images"}

    def __init__(self, lr: float, decay_nimg: int | None = None, rampup_nimg: int = 10_000_000) -> None:
        self.lr = positive("InverseSqrtDecay.lr", lr)
        self.decay_nimg = decay_nimg
        self.rampup_nimg = rampup_nimg

    def __call__(self, cur_nimg: int) -> float:
        """Learning rate of the step before which `cur_nimg` images were seen."""
        rate = self.lr
        if self.decay_nimg:
            rate /= math.sqrt(max(cur_nimg / self.decay_nimg, 1.0))
        if self.rampup_nimg:
            rate *= min(cur_nimg / self.rampup_nimg, 1.0)
        return rate


class ConstantRate:
    """The same learning rate throughout, without ramp-up (DiT, U-DiT)."""

    def __init__(self, lr: float = 1e-4) -> None:
        self.lr = positive("ConstantRate.lr", lr)

    def __call__(self, cur_nimg: int) -> float:
        """Learning rate of the step before which `cur_nimg` images were seen."""
        return self.lr

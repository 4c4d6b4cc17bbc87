"""Learning-rate schedules: functions of images seen, never of the run's length: longer runs continue shorter ones."""

from __future__ import annotations


class LinearRampup:
    """Linear ramp from 0 to `lr` over `rampup_nimg` images, then constant (EDM; Karras et al. 2022, Table 7).

    The very first step has learning rate 0, as in the published loop.
    """

    UNITS = {"rampup_nimg": "images"}

    def __init__(self, lr: float, rampup_nimg: int = 10_000_000) -> None:
        self.lr = lr
        self.rampup_nimg = rampup_nimg

    def __call__(self, cur_nimg: int) -> float:
        """Learning rate of the step before which `cur_nimg` images were seen."""
        return self.lr * min(cur_nimg / max(self.rampup_nimg, 1e-8), 1.0)

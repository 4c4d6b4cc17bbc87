"""Selection: the rule that turns candidates (snapshots, sampling ranges) into a cell's value."""

from __future__ import annotations

import dataclasses

from repro.config import register
from repro.errors import UsageError

Place = tuple[int, int]
"""(milestone in images, sampling range)."""


@dataclasses.dataclass
class BestSnapshot:
    """EDM's rule: the best of the snapshots at a fixed interval, each the minimum over sampling ranges (appendix F.3).

    Args:
        total_nimg: length of training in images; the last candidate.
        interval_nimg: images between candidates.
        ranges: sampling ranges a candidate; range k holds seeds k n to (k + 1) n - 1.
    """

    UNITS = {"total_nimg": "images", "interval_nimg": "interval", "ranges": "ranges"}

    total_nimg: int = 200_000_000
    interval_nimg: int = 2_500_000
    ranges: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "total_nimg", "interval_nimg", "ranges")

    def milestones(self) -> list[int]:
        """Candidates in images, increasing; the last is the end of training."""
        inner = range(self.interval_nimg, self.total_nimg, self.interval_nimg)
        return [*inner, self.total_nimg]

    def choose(self, values: dict[Place, float]) -> Place | None:
        """The (milestone, range) whose value is the cell's, or None unless every candidate of every range is there."""
        return _lowest(self, values)

    def given(self) -> FinalSnapshot:
        """The rule for one network that is given: it was selected already."""
        return FinalSnapshot(self.total_nimg, self.ranges)


@dataclasses.dataclass
class FinalSnapshot:
    """EDM2's rule: the end of training, the minimum over sampling ranges (Karras et al. 2024, section 2).

    Args:
        total_nimg: length of training in images.
        ranges: sampling ranges; range k holds seeds k n to (k + 1) n - 1.
    """

    UNITS = {"total_nimg": "images", "ranges": "ranges"}

    total_nimg: int = 2**31
    ranges: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "total_nimg", "ranges")

    def milestones(self) -> list[int]:
        """The end of training, in images."""
        return [self.total_nimg]

    def choose(self, values: dict[Place, float]) -> Place | None:
        """The (milestone, range) whose value is the cell's, or None unless every range is there."""
        return _lowest(self, values)

    def given(self) -> FinalSnapshot:
        """The rule for one network that is given: the same."""
        return self


@dataclasses.dataclass
class MinimumOfRanges(FinalSnapshot):
    """EDM's rule for a network that is given, not selected: the minimum over sampling ranges of its final weights
    (appendix F.1). The ranges are the same at every scale: their spread says what a difference of samplers is worth.

    Args:
        total_nimg: length of training in images.
        ranges: sampling ranges; range k holds seeds k n to (k + 1) n - 1.
    """

    UNITS = {"total_nimg": "images"}

    total_nimg: int = 200_000_000


Selection = BestSnapshot | FinalSnapshot
register(BestSnapshot, FinalSnapshot, MinimumOfRanges)  # here, not with the rest: it needs no torch


def _check_positive(rule: Selection, *names: str) -> None:
    for name in names:
        if getattr(rule, name) < 1:
            raise UsageError(f"{type(rule).__name__}.{name} must be 1 or more, not {getattr(rule, name)}")


def _lowest(rule: Selection, values: dict[Place, float]) -> Place | None:
    wanted = [(milestone, k) for milestone in rule.milestones() for k in range(rule.ranges)]
    if any(key not in values for key in wanted):
        return None
    return min(wanted, key=lambda key: values[key])

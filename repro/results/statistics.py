"""The statistics behind `check`: when has a number moved?

All on the logarithm of the distance, whose spread is proportional to its size. A reference is m replicates with mean r
and standard deviation s; fresh results are k replicates of other seeds with mean f. Under no change

    t = (f - r) / (s sqrt(1/m + 1/k))

has Student's distribution with m - 1 degrees of freedom: both uncertainties are in it, and s is the reference's alone,
so that a single fresh replicate can be tested. The band is two-sided: too good is also wrong. A shift of d sd makes t
noncentral with noncentrality d / sqrt(1/m + 1/k), which gives the power. The whole table fails if a cell lies outside
the band of level `LEVEL` / (number of cells) (Bonferroni), or if two or more lie outside that of `LEVEL`; with c cells
its rate of false alarms is at most LEVEL + c (c - 1) / 2 LEVEL^2 (1.7 % for twelve).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

LEVEL = 0.01
"""False alarms a cell."""
POWER_SHIFT = 4.0
"""The shift, in sd of the reference, whose detection rate is printed as the power."""
PAPER_RELATIVE_SD = 0.02
"""Relative sd of a paper's FID where the paper gives none (Karras et al. 2022, appendix F.1: about +-2 %)."""


@functools.cache
def _special() -> Any:
    """scipy.special, imported when a verdict is due: it takes half a second that a table without one need not wait."""
    from scipy import special

    return special


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One cell's test: p two-sided; low and high: the band for the fresh geometric mean; power at a shift of 4 sd."""

    fresh: float
    reference: float
    low: float
    high: float
    p: float
    power: float

    @property
    def holds(self) -> bool:
        return self.p >= LEVEL


def log_moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the logarithms; sd 0 for one value. Values must be positive."""
    logs = [math.log(value) for value in values]
    mean = sum(logs) / len(logs)
    sd = math.sqrt(sum((x - mean) ** 2 for x in logs) / (len(logs) - 1)) if len(logs) > 1 else 0.0
    return mean, sd


def against_replicates(fresh: Sequence[float], reference: Sequence[float]) -> Outcome:
    """Test k fresh values against m >= 2 reference values (all positive distances).

    Raises:
        ValueError: too few values, or a value that is not a positive number.
    """
    _positive([*fresh, *reference])
    if not fresh or len(reference) < 2:
        raise ValueError("needs a fresh value and at least two of the reference")
    mean, sd = log_moments(reference)
    width = sd * math.sqrt(1 / len(reference) + 1 / len(fresh))
    degrees = len(reference) - 1
    found = log_moments(fresh)[0]
    critical = _critical(degrees)
    p = 2 * float(_special().stdtr(degrees, -abs(found - mean) / width)) if width else float(found == mean)
    return Outcome(
        fresh=math.exp(found),
        reference=math.exp(mean),
        low=math.exp(mean - critical * width),
        high=math.exp(mean + critical * width),
        p=p,
        power=power(len(reference), len(fresh)),
    )


def power(m: int, k: int, shift: float = POWER_SHIFT) -> float:
    """Probability that a shift of `shift` reference sd lies outside the band, with m reference and k fresh values."""
    critical = _critical(m - 1)
    noncentrality = shift / math.sqrt(1 / m + 1 / k)
    inside = _special().nctdtr(m - 1, noncentrality, critical) - _special().nctdtr(m - 1, noncentrality, -critical)
    return float(1 - inside)


def _critical(degrees: int) -> float:
    """What |t| exceeds with probability LEVEL."""
    return -float(_special().stdtrit(degrees, LEVEL / 2))


def against_paper(fresh: Sequence[float], paper: float) -> Outcome:
    """Test k fresh values, each selected by the paper's own rule, against a printed value of 2 % relative sd."""
    _positive([*fresh, paper])
    if not fresh:
        raise ValueError("needs a fresh value")
    width = PAPER_RELATIVE_SD * math.sqrt(1 + 1 / len(fresh))
    found, mean = log_moments(fresh)[0], math.log(paper)
    critical = -float(_special().ndtri(LEVEL / 2))
    shifted = POWER_SHIFT * PAPER_RELATIVE_SD / width
    return Outcome(
        fresh=math.exp(found),
        reference=paper,
        low=math.exp(mean - critical * width),
        high=math.exp(mean + critical * width),
        p=2 * float(_special().ndtr(-abs(found - mean) / width)),
        power=float(_special().ndtr(shifted - critical) + _special().ndtr(-critical - shifted)),
    )


def table_holds(outcomes: Sequence[Outcome]) -> bool:
    """The rule for a whole table's exit code (see the module's text)."""
    outside = [outcome for outcome in outcomes if not outcome.holds]
    return len(outside) < 2 and all(outcome.p >= LEVEL / len(outcomes) for outcome in outcomes)


def _positive(values: Sequence[float]) -> None:
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{value} is not a positive distance")

"""The statistics behind `check`: when has a number moved?

All on the logarithm of the distance, whose spread is proportional to its size. A reference is m replicates with mean r
and standard deviation s; fresh results are k replicates of other seeds with mean f. Under no change

    t = (f - r) / (s sqrt(1/m + 1/k))

has Student's distribution with m - 1 degrees of freedom: both uncertainties are in it, and s is the reference's alone,
so that a single fresh replicate can be tested. The band is two-sided: too good is also wrong. A shift of d sd makes t
noncentral with noncentrality d / sqrt(1/m + 1/k), which gives the power. The whole table fails if a cell lies outside
the band of level `LEVEL` / (number of cells) (Bonferroni), or if two or more lie outside that of `LEVEL`; with c cells
its rate of false alarms is at most LEVEL + c (c - 1) / 2 LEVEL^2 (1.7 % for twelve). Derivations: docs/statistics.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

LEVEL = 0.01
"""False alarms a cell."""
QUADRATURE = 200
"""Nodes of the integral behind the power; 1e-8 for up to 50 degrees of freedom."""
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
    """One cell's test: p two-sided; low and high: the band for the fresh geometric mean; power at a shift of 4 sd;
    sizes: (reference values, fresh values), None where the reference is a printed value."""

    fresh: float
    reference: float
    low: float
    high: float
    p: float
    power: float
    sizes: tuple[int, int] | None = None

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
        sizes=(len(reference), len(fresh)),
    )


def power(m: int, k: int, shift: float = POWER_SHIFT) -> float:
    """Probability that a shift of `shift` reference sd lies outside the band, with m reference and k fresh values."""
    return _power_at(m, k, shift, LEVEL)


@functools.cache
def _power_at(m: int, k: int, shift: float, level: float) -> float:
    """P(|T| > c) for noncentral T = (Z + delta) / sqrt(V / nu), integrated over V: scipy's nctdtr is nan in places."""
    import numpy as np  # not before a verdict is due

    special, degrees = _special(), m - 1
    critical, delta = _critical(degrees, level), shift / math.sqrt(1 / m + 1 / k)
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    # chi-squared by its quantiles; u = (3 x - x^3) / 4 + 1/2 flattens both ends, where quantiles are steep
    u, slope = (3 * nodes - nodes**3) / 4 + 0.5, 0.75 * (1 - nodes**2)
    root = np.sqrt(2 * special.gammaincinv(degrees / 2, u) / degrees)
    tails = special.ndtr(delta - critical * root) + special.ndtr(-delta - critical * root)
    return float((weights * slope * tails).sum())


def table_false_alarms(cells: int) -> float:
    """Upper bound of the probability that `table_holds` fails although nothing has changed, for independent cells."""
    return min(1.0, LEVEL + cells * (cells - 1) / 2 * LEVEL**2)


def table_power(m: int, k: int, cells: int, shifted: int = 1, shift: float = POWER_SHIFT) -> float:
    """Probability that a table fails when some of its cells have shifted.

    Args:
        m, k: reference and fresh values a cell.
        cells: cells of the table; shifted: how many of them have moved, by `shift` sd of the reference.

    A table holds if no cell has p < LEVEL / cells and fewer than two have p < LEVEL. Cells are independent.
    """
    outside, far = power(m, k, shift), _power_at(m, k, shift, LEVEL / cells)
    within = (1 - outside) ** shifted * (1 - LEVEL) ** (cells - shifted)
    one_mild = shifted * (outside - far) * (1 - outside) ** (shifted - 1) * (1 - LEVEL) ** (cells - shifted)
    unmoved = cells - shifted
    stray = LEVEL - LEVEL / cells
    one_stray = (1 - outside) ** shifted * unmoved * stray * (1 - LEVEL) ** max(unmoved - 1, 0)
    return float(1 - within - one_mild - one_stray)


def _critical(degrees: int, level: float = LEVEL) -> float:
    """What |t| exceeds with probability `level`."""
    return -float(_special().stdtrit(degrees, level / 2))


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

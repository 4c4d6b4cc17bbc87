from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repro.results.statistics import (
    LEVEL,
    Outcome,
    against_paper,
    against_replicates,
    log_moments,
    power,
    table_false_alarms,
    table_holds,
    table_power,
)


def outcome(p: float) -> Outcome:
    return Outcome(1.0, 1.0, 0.9, 1.1, p, 0.5)


def test_band_by_hand() -> None:
    # logs -1, 0, 1: mean 0, sd 1; two fresh values: width sqrt(1/3 + 1/2); t(0.995, 2 degrees) = 9.92484
    found = against_replicates([math.e, math.e], [math.exp(-1), 1.0, math.e])
    width = 9.92484 * math.sqrt(5 / 6)
    assert found.fresh == pytest.approx(math.e) and found.reference == pytest.approx(1.0)
    assert math.log(found.high) == pytest.approx(width, rel=1e-5) and found.low == pytest.approx(1 / found.high)
    # t = 1 / sqrt(5/6); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - 1 / sqrt(1 + 2 * 5 / 6)
    assert found.p == pytest.approx(1 - 1 / math.sqrt(1 + 10 / 6))
    assert found.holds


def test_paper_band_by_hand() -> None:
    found = against_paper([2.0, 2.0], 2.0)
    assert math.log(found.high / 2) == pytest.approx(2.575829 * 0.02 * math.sqrt(1.5), rel=1e-6)
    assert found.p == pytest.approx(1.0) and found.holds
    assert not against_paper([2.2], 2.0).holds and not against_paper([1.8], 2.0).holds


def test_too_good_is_outside() -> None:
    reference = [1.0, 1.05, 0.95, 1.02, 0.98, 1.01, 0.99, 1.0]
    assert against_replicates([1.0], reference).holds
    assert not against_replicates([1.5], reference).holds
    assert not against_replicates([1 / 1.5], reference).holds


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=9, unique=True), st.floats(0.01, 100), st.floats(0.1, 10))
def test_the_unit_does_not_matter_and_the_band_is_where_p_is_the_level(
    reference: list[float], fresh: float, unit: float
) -> None:
    if log_moments(reference)[1] < 1e-3:
        return
    found = against_replicates([fresh], reference)
    scaled = against_replicates([fresh * unit], [value * unit for value in reference])
    assert scaled.p == pytest.approx(found.p, abs=1e-6)
    assert found.low < found.reference < found.high
    assert against_replicates([found.high], reference).p == pytest.approx(LEVEL, rel=1e-5)
    assert found.holds == (found.low <= fresh <= found.high)


def simulated(m: int, k: int, shift: float, trials: int, seed: int) -> int:
    """How many of many log-normal experiments lie outside; the shift is in sd."""
    rng = np.random.default_rng(seed)
    old = np.exp(0.3 + 0.1 * rng.standard_normal((trials, m)))
    new = np.exp(0.3 + 0.1 * (shift + rng.standard_normal((trials, k))))
    return sum(not against_replicates(list(b), list(a)).holds for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(("m", "k"), [(8, 3), (8, 1), (5, 1)])
def test_false_alarms_are_one_percent(m: int, k: int) -> None:
    trials = 5000
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, LEVEL)
    assert low <= simulated(m, k, 0.0, trials, seed=1) <= high


@pytest.mark.parametrize(("m", "k", "expected"), [(8, 3, 0.97), (5, 1, 0.37)])
def test_power_at_four_sd(m: int, k: int, expected: float) -> None:
    assert power(m, k) == pytest.approx(expected, abs=0.01)
    noncentrality = 4 / math.sqrt(1 / m + 1 / k)
    critical = stats.t.ppf(0.995, m - 1)
    exact = stats.nct.sf(critical, m - 1, noncentrality) + stats.nct.cdf(-critical, m - 1, noncentrality)
    assert power(m, k) == pytest.approx(exact, abs=1e-6)
    trials = 2000
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, power(m, k))
    assert low <= simulated(m, k, 4.0, trials, seed=2) <= high
    assert low <= simulated(m, k, -4.0, trials, seed=3) <= high


def test_power_without_a_shift_is_the_level() -> None:
    assert power(8, 3, 0.0) == pytest.approx(LEVEL)
    assert power(8, 3, 6.0) > power(8, 3) > power(8, 1)


def test_table_rule() -> None:
    twelve = [outcome(0.5)] * 11
    assert table_holds([*twelve, outcome(0.5)])
    assert table_holds([*twelve, outcome(0.005)])  # one cell outside its band, which twelve cells may well have
    assert not table_holds([*twelve, outcome(0.0005)])  # under 0.01 / 12
    assert not table_holds([*twelve[:-1], outcome(0.009), outcome(0.009)])
    assert not table_holds([outcome(0.009)])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_values_that_are_no_distances(bad: float) -> None:
    with pytest.raises(ValueError, match="is not a positive distance"):
        against_replicates([bad], [1.0, 2.0])
    with pytest.raises(ValueError, match="is not a positive distance"):
        against_replicates([1.0], [bad, 2.0])
    with pytest.raises(ValueError, match="is not a positive distance"):
        against_paper([1.0], bad)


def test_too_few_values() -> None:
    for fresh, reference in (([], [1.0, 2.0]), ([1.0], [1.0])):
        with pytest.raises(ValueError, match="at least two"):
            against_replicates(fresh, reference)
    with pytest.raises(ValueError, match="needs a fresh value"):
        against_paper([], 1.0)


def test_a_reference_without_spread() -> None:
    assert against_replicates([1.0], [1.0, 1.0]).holds
    assert not against_replicates([1.1], [1.0, 1.0]).holds


def failing_tables(cells: int, shifted: int, trials: int, seed: int, m: int = 8, k: int = 3) -> int:
    """How many of many simulated tables fail the rule; the first `shifted` cells have moved by four sd."""
    rng = np.random.default_rng(seed)
    failed = 0
    for _ in range(trials):
        moves = np.where(np.arange(cells) < shifted, 4.0, 0.0)
        old = np.exp(1 + 0.05 * rng.standard_normal((cells, m)))
        new = np.exp(1 + 0.05 * (moves[:, None] + rng.standard_normal((cells, k))))
        pairs = zip(new, old, strict=True)
        failed += not table_holds([against_replicates(list(a), list(b)) for a, b in pairs])
    return failed


@pytest.mark.parametrize(("cells", "shifted"), [(1, 1), (12, 1), (12, 2), (6, 3)])
def test_power_of_a_table_by_simulation(cells: int, shifted: int) -> None:
    trials, expected = 600, table_power(8, 3, cells, shifted)
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, expected)
    assert low <= failing_tables(cells, shifted, trials, seed=cells + shifted) <= high
    assert expected > 0.5


def test_false_alarms_of_a_table_stay_below_the_bound() -> None:
    trials = 1000
    assert table_false_alarms(12) == pytest.approx(0.0166)
    assert table_power(8, 3, 12, shifted=0) <= table_false_alarms(12)
    assert failing_tables(12, 0, trials, seed=3) <= stats.binom.ppf(0.9995, trials, table_false_alarms(12))


def test_one_cells_table_has_the_power_of_the_cell() -> None:
    assert table_power(8, 3, 1) == pytest.approx(power(8, 3))
    assert table_power(8, 3, 12, 1) < power(8, 3) < table_power(8, 3, 12, 3)


@given(st.integers(2, 10), st.integers(1, 5), st.integers(1, 50), st.data())
def test_power_of_a_table_is_a_probability_that_grows(m: int, k: int, cells: int, data: st.DataObject) -> None:
    shifted = data.draw(st.integers(0, cells - 1))
    one, more = table_power(m, k, cells, shifted), table_power(m, k, cells, shifted + 1)
    assert -1e-9 <= one <= more + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize(("spread", "k"), [(0.02, 1), (0.02, 3)])
def test_false_alarms_against_a_paper(spread: float, k: int) -> None:
    """The paper's one value and ours, each of 2 % relative sd."""
    rng, trials = np.random.default_rng(5), 5000
    printed = np.exp(spread * rng.standard_normal(trials))
    ours = np.exp(spread * rng.standard_normal((trials, k)))
    outside = sum(not against_paper(list(a), float(b)).holds for a, b in zip(ours, printed, strict=True))
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, LEVEL)
    assert low <= outside <= high


def test_the_logarithm_is_what_makes_cells_of_any_size_alike() -> None:
    """A spread that is proportional to the distance gives one p, whatever the distance."""
    reference = [1.0, 1.1, 0.9, 1.05]
    values = [against_replicates([1.2 * unit], [x * unit for x in reference]).p for unit in (0.01, 1.0, 300.0)]
    assert values == pytest.approx([values[0]] * 3)

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from record_factory import F_VP, make_record, resolved, write_values

from repro.cells import Resolved
from repro.results.collect import STALE, CellResult, Collection, collect
from repro.results.records import write_record
from repro.tables import find_cell, load_table

TABLE = load_table("edm/table2")


def collected(
    runs: Path | list[Path], cell: str = F_VP, scale: str = "mini", bindings: tuple[str, ...] = ()
) -> CellResult:
    return whole(runs, cell, scale, bindings).cells[0]


def whole(runs: Path | list[Path], cell: str = F_VP, scale: str = "mini", bindings: Sequence[str] = ()) -> Collection:
    folders = runs if isinstance(runs, list) else [runs]
    return collect(TABLE, scale, folders, [find_cell(cell)], bindings)


def full_values(base: Resolved, runs: Path, leave_out: tuple[int, int] | None = None) -> None:
    """Records of all 80 snapshots and three ranges; the best is 1.5, at snapshot 70 in range 1."""
    milestones = base.selection().milestones()
    assert len(milestones) == 80 and base.selection().ranges == 3
    for index, milestone in enumerate(milestones):
        for k in range(3):
            if (index, k) != leave_out:
                value = 1.5 if (index, k) == (70, 1) else 2.0 + abs(index - 70) / 100 + k / 1000
                write_record(runs, make_record(base, value, milestone_nimg=milestone, range=k))


@pytest.fixture(autouse=True)
def _without_references(committed: Path) -> None:
    pass


def test_mean_sd_n_and_minimum(runs: Path) -> None:
    write_values(runs, F_VP, [1.0, 2.0, 4.0])
    result = collected(runs)
    assert result.values == [1.0, 2.0, 4.0]
    assert result.mean == pytest.approx(7 / 3)
    assert result.sd == pytest.approx(math.sqrt(7 / 3))  # ((4/3)^2 + (1/3)^2 + (5/3)^2) / 2
    assert result.verdict == "" and result.notes == []
    row = whole(runs).frame().iloc[0]
    assert (row["n"], row["min"], row["NFE"], row["paper FID"]) == (3, 1.0, 15.0, 1.79)


def test_one_replicate_has_no_spread(runs: Path) -> None:
    write_values(runs, F_VP, [1.5])
    assert math.isnan(collected(runs).sd)


def test_nothing_is_missing_and_says_so(runs: Path) -> None:
    result = collected(runs)
    assert result.replicates == [] and result.notes == ["no record"] and math.isnan(result.mean)


def test_full_takes_the_best_snapshot_and_the_minimum_of_three_ranges(runs: Path) -> None:
    base = resolved(F_VP, "full")
    full_values(base, runs)
    result = collected(runs, scale="full")
    (replicate,) = result.replicates
    assert (replicate.value, replicate.range, replicate.candidates) == (1.5, 1, 240)
    assert replicate.milestone_nimg == base.selection().milestones()[70] == 177_500_000
    assert result.outcome is not None and result.verdict == "outside"  # 1.5 is too good for 1.79


def test_full_waits_for_every_candidate(runs: Path) -> None:
    full_values(resolved(F_VP, "full"), runs, leave_out=(79, 2))
    result = collected(runs, scale="full")
    assert result.replicates == [] and result.notes == ["seed 0: 239 of 240 candidates"]


def test_a_value_that_is_no_number_is_no_candidate(runs: Path) -> None:
    write_values(runs, F_VP, [math.nan, math.inf, 2.0])
    result = collected(runs)
    assert result.values == [2.0]
    assert result.notes == ["seed 0: 0 of 1 candidates", "seed 1: 0 of 1 candidates"]


def test_an_inferred_setting_gets_no_verdict_at_full(runs: Path) -> None:
    cell = "edm/table2/e/cifar10-cond-vp"
    full_values(resolved(cell, "full"), runs)
    result = collected(runs, cell, "full")
    assert result.values == [1.5] and result.outcome is None
    assert result.notes == ["no verdict: an inferred setting"]


def test_a_trained_starred_cell_says_so(runs: Path) -> None:
    cell = "edm/table2/a/cifar10-uncond-vp"
    full_values(resolved(cell, "full"), runs)
    assert "trained here; the paper evaluated published weights" in collected(runs, cell, "full").notes


def test_other_sources_are_stale(runs: Path) -> None:
    write_values(runs, F_VP, [1.0], sources_sha256="f" * 64)
    write_values(runs, F_VP, [2.0], first_seed=1)
    result = collected(runs)
    assert result.stale and result.values == [1.0, 2.0]
    assert result.notes == [STALE] and "`repro check TABLE --fingerprint`" in STALE
    assert [replicate.stale for replicate in result.replicates] == [True, False]


def test_another_configuration_is_not_used_and_said(runs: Path) -> None:
    other = resolved(bindings=("Adam.eps = 1e-7",))
    write_record(runs, make_record(other, 1.0))
    result = collected(runs)
    assert result.values == []
    assert result.notes == ["no record", "1 record was made with another configuration: not used"]
    assert collected(runs, bindings=("Adam.eps = 1e-7",)).values == [1.0]


def test_different_manifests_are_never_averaged(runs: Path) -> None:
    write_values(runs, F_VP, [1.0])
    write_values(runs, F_VP, [2.0], first_seed=1, data_manifest_sha256="c" * 64)
    result = collected(runs)
    assert result.values == [] and math.isnan(result.mean)
    assert result.notes == ["replicates on different data manifests (aaaaaaaa, cccccccc) are not averaged"]


def test_different_manifests_in_one_replicate(runs: Path) -> None:
    base = resolved(bindings=("BestSnapshot.ranges = 6",))  # two at mini
    write_record(runs, make_record(base, 1.0))
    write_record(runs, make_record(base, 2.0, range=1, data_manifest_sha256="c" * 64))
    result = collected(runs, bindings=("BestSnapshot.ranges = 6",))
    assert result.values == [] and result.notes == ["seed 0: on several data manifests"]


def test_several_folders_agree_or_are_said_to_disagree(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_values(runs, F_VP, [1.0])
    write_values(other, F_VP, [1.0, 3.0])
    both = whole([runs, other])
    assert both.cells[0].values == [1.0, 3.0] and both.notes == []
    third = tmp_path / "third"
    write_values(third, F_VP, [5.0])
    disagreeing = whole([runs, third])
    assert disagreeing.cells[0].values == [1.0]
    assert disagreeing.notes == [f"two records of {F_VP} (seed 0) disagree; the first found is used"]
    assert whole([third, runs]).cells[0].values == [5.0]


def test_a_bad_file_is_named_and_the_rest_is_used(runs: Path) -> None:
    first, _ = write_values(runs, F_VP, [1.0, 2.0])
    first.write_text("{")
    found = whole(runs)
    assert found.cells[0].values == [2.0]
    assert len(found.notes) == 1 and str(first) in found.notes[0]


def test_other_scales_and_cells_are_left_alone(runs: Path) -> None:
    write_record(runs, make_record(resolved(scale="ci"), 9.0))
    write_values(runs, "edm/table2/e/cifar10-cond-vp", [8.0])
    assert collected(runs).notes == ["no record"]


def test_equal_configurations_share_a_record(runs: Path, monkeypatch: Any) -> None:
    """A record belongs to a cell by its hashes, whichever cell asked for it."""
    write_record(runs, make_record(resolved(), 1.0, cell="edm/table2/e/cifar10-cond-ve"))
    assert collected(runs).values == [1.0]


T4 = "edm/table4/optimal/cifar10-uncond-vp"


def of_table(name: str, runs: Path, scale: str = "mini") -> Collection:
    table = load_table(name)
    return collect(table, scale, [runs], table.select(None, ["cifar10-uncond-vp"]))


def test_the_minimum_stands_beside_mean_and_sd_over_its_ranges(runs: Path) -> None:
    base = resolved(T4)
    assert base.selection().ranges == 3  # at every scale
    for seed, values in enumerate([(3.0, 2.0, 4.0), (5.0, 6.0, 7.0)]):
        for k, value in enumerate(values):
            write_record(runs, make_record(base.with_seed(seed), value, range=k, nfe=49.0 + seed))
    (result,) = (r for r in of_table("edm/table4", runs).cells if r.cell.name == T4)
    assert result.values == [2.0, 5.0] and result.over_ranges == (pytest.approx(4.5), pytest.approx(1.0), 3)
    row = of_table("edm/table4", runs).frame().set_index("cell").loc[T4]
    assert (row["mean"], row["ranges"], row["mean over ranges"], row["NFE"]) == (3.5, 3, 4.5, 49.5)


def test_one_range_has_no_spread_over_ranges(runs: Path) -> None:
    write_values(runs, F_VP, [1.0])
    assert collected(runs).over_ranges[2] == 1 and math.isnan(collected(runs).over_ranges[0])


def test_a_missing_range_is_waited_for(runs: Path) -> None:
    for k in (0, 2):
        write_record(runs, make_record(resolved(T4), 2.0, range=k))
    (result,) = (r for r in of_table("edm/table4", runs).cells if r.cell.name == T4)
    assert result.notes == ["seed 0: 2 of 3 candidates"]


def test_reference_only_rows_say_why(runs: Path) -> None:
    (result,) = (r for r in of_table("edm/table4", runs).cells if r.cell.row == "previous")
    assert result.replicates == [] and result.verdict == ""
    assert result.notes[0].startswith("reference only: the original stochastic samplers")


def test_networks_trained_in_place_of_published_ones_get_no_verdict(runs: Path) -> None:
    base = resolved(T4, "full")
    for k in range(3):
        write_record(runs, make_record(base, 2.27, range=k))
    (result,) = (r for r in of_table("edm/table4", runs, "full").cells if r.cell.name == T4)
    assert result.values == [2.27] and result.verdict == ""
    assert "trained here; the paper evaluated published weights" in result.notes


def test_cells_of_two_tables_share_records(runs: Path) -> None:
    """Table 4's deterministic row is Table 3's last but one: one evaluation."""
    base = resolved("edm/table3/ours/cifar10-uncond-vp")
    for k in range(3):
        write_record(runs, make_record(base, 2.0 + k, range=k))
    for table, row in (("edm/table3", "ours"), ("edm/table4", "deterministic")):
        (result,) = (r for r in of_table(table, runs).cells if r.cell.row == row)
        assert result.values == [2.0]

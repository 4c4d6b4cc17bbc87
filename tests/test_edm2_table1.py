"""EDM2's Table 1: rows as printed, each the one before plus what the paper says, and networks of the counted sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from repro import assets
from repro.cells import Resolved, resolve
from repro.config import build, flatten
from repro.errors import UsageError
from repro.scale import collisions
from repro.selection import FinalSnapshot
from repro.tables import load_table

TABLE = load_table("edm2/table1")
ROWS = "abcdefg"
PRINTED = {"a": 8.00, "b": 7.24, "c": 6.96, "d": 3.75, "e": 3.02, "f": 2.71, "g": 2.56}
MODEL = "trajectory.denoiser.model"
NEW_IN_G = {
    "mp_silu": True,
    "mp_fourier": True,
    "learned_gains": True,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "dropout": 0.0,
}


def of(row: str, scale: str = "full") -> Resolved:
    cell = TABLE.cell(row, "imagenet512")
    assert cell is not None
    return resolve(cell, scale)


def differences(first: str, second: str, scale: str = "full") -> dict[str, Any]:
    """What a row sets otherwise than another: dotted path -> its value."""
    ours, theirs = flatten(of(second, scale).experiment), flatten(of(first, scale).experiment)
    return {path: ours.get(path) for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}


def test_values_as_printed() -> None:
    assert {cell.row: cell.reference["FID"] for cell in TABLE.cells} == PRINTED
    assert {cell.reference["NFE"] for cell in TABLE.cells} == {63}
    assert [cell.row for cell in TABLE.cells if not cell.inferred] == ["g"], "only G has published code"


def test_lab_cards_and_includes() -> None:
    for before, row in zip(" abcdef", ROWS, strict=True):
        text = (assets.gin_dir() / f"edm2/table1/{row}.gin").read_text()
        for word in ("# paper", "# table", "# printed", "# chosen", "# hardware", "# command"):
            assert word in text
        assert f"FID {PRINTED[row]:.2f} " in text
        assert f"include 'edm2/table1/{before}.gin'" in text or row == "a"


def test_each_row_changes_what_the_paper_says() -> None:
    """Section 2 and appendix B of the paper; every row has an average of its own length."""
    ema = "evaluation.ema.std"
    assert differences("c", "d") == {
        f"{MODEL}.weights": "normalized", "trajectory.loss_scale": 1.0, "trajectory.lr.lr": 0.01, ema: 0.225,
    }  # fmt: skip
    assert differences("d", "e") == {
        f"{MODEL}.weights": "forced", "trajectory.lr.decay_nimg": 143_360_000, ema: 0.145,
    }  # fmt: skip
    assert differences("e", "f") == {f"{MODEL}.group_norm": False, ema: 0.1}
    assert differences("f", "g") == {**{f"{MODEL}.{key}": value for key, value in NEW_IN_G.items()}, ema: 0.13}
    assert all(path == ema or path.startswith(MODEL) for path in differences("b", "c"))


@pytest.mark.parametrize("scale", ["mini", "ci"])
def test_rows_differ_alike_at_every_scale(scale: str) -> None:
    for first, second in zip(ROWS, ROWS[1:], strict=False):
        assert differences(first, second, scale).keys() == differences(first, second).keys()
    full, small = ({row: of(row, name).experiment for row in ROWS} for name in ("full", scale))
    assert collisions(full, small) == []


@pytest.mark.parametrize(
    "row, count",
    [("a", 295902724), ("b", 291757957), ("c", 277816640), ("d", 277816640), ("e", 277816640), ("f", 280212800),
     ("g", 280212837)],
)  # fmt: skip
def test_rows_build_networks_of_the_counted_sizes(row: str, count: int) -> None:
    """Section 11 of the specification, plus the head of the loss from B on."""
    with torch.device("meta"):
        denoiser = build(of(row).trajectory.args["denoiser"])
    assert sum(p.numel() for p in denoiser.parameters()) == count


def test_mini_snapshots_determine_every_rows_average() -> None:
    from repro.training.posthoc import ERROR_LIMIT
    from repro.training.power_profile import profile_errors

    for row in ROWS[1:]:
        resolved = of(row, "mini")
        ema, total = resolved.ema(), resolved.selection().milestones()[-1]
        times = np.repeat(np.array(ema.times(total), dtype=float), len(ema.tracked))
        stds = np.tile(np.array(ema.tracked), len(times) // len(ema.tracked))
        assert profile_errors(times, stds, np.array([float(total)]), np.array([ema.std]))[0] <= ERROR_LIMIT


def test_the_value_of_a_cell_is_the_minimum_of_its_ranges() -> None:
    rule = FinalSnapshot(1000, 3)
    assert rule.milestones() == [1000]
    assert rule.choose({(1000, 0): 3.0, (1000, 1): 2.0}) is None
    assert rule.choose({(1000, 0): 3.0, (1000, 1): 2.0, (1000, 2): 2.5}) == (1000, 1)
    with pytest.raises(UsageError, match="ranges must be 1 or more"):
        FinalSnapshot(1000, 0)

"""The scale: sizes change, the differences between rows never, and each difference is felt."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from repro import assets
from repro.cells import Resolved, resolve, scale_names
from repro.config import REGISTRY, Node, canonical, flatten
from repro.errors import UsageError
from repro.results.fingerprint import differences, fingerprint
from repro.scale import UNIT_NAMES, check_map, collisions, mapped, scaled
from repro.tables import find_cell, load_table, table_names

TABLE = load_table("edm/table2")
PAIRS = list(zip("abcde", "bcdef", strict=True))


def of(row: str, column: str, scale: str) -> Resolved:
    cell = TABLE.cell(row, column)
    assert cell is not None
    return resolve(cell, scale)


def changed(first: Resolved, second: Resolved) -> set[str]:
    ours, theirs = flatten(first.experiment), flatten(second.experiment)
    return {path for path in ours.keys() | theirs.keys() if ours.get(path, "-") != theirs.get(path, "-")}


@pytest.mark.parametrize("column", TABLE.columns)
@pytest.mark.parametrize("scale", [name for name in scale_names() if name != "full"])
def test_neighbouring_rows_differ_in_the_same_keys_at_every_scale(column: str, scale: str) -> None:
    for first, second in PAIRS:
        full = changed(of(first, column, "full"), of(second, column, "full"))
        assert changed(of(first, column, scale), of(second, column, scale)) == full


@pytest.mark.parametrize("column", TABLE.columns)
def test_values_that_differ_at_full_differ_at_mini(column: str) -> None:
    full = {row: of(row, column, "full").experiment for row in TABLE.rows}
    mini = {row: of(row, column, "mini").experiment for row in TABLE.rows}
    assert collisions(full, mini) == []


@pytest.mark.parametrize("name", [name for name in table_names() if name != "edm/table2"])
def test_rows_of_every_table_keep_their_differences_at_mini(name: str) -> None:
    table = load_table(name)
    for column in table.columns:
        cells = [cell for cell in table.computable if cell.column == column]
        full = {cell.row: resolve(cell).experiment for cell in cells}
        mini = {cell.row: resolve(cell, "mini").experiment for cell in cells}
        assert collisions(full, mini) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "first", "second"),
    [
        ("edm/table3", "algorithm1", "heun"),
        ("edm/table3", "heun", "ours"),
        ("edm/table3", "ours", "rk45"),
        ("edm/table4", "optimal", "no-noise"),
        ("edm/table4", "optimal", "full-range"),
        ("edm/table4", "full-range", "full-range-no-noise"),
    ],
)
@pytest.mark.parametrize("column", ["cifar10-uncond-vp", "cifar10-uncond-ve"])
def test_every_key_on_which_sampler_rows_differ_is_felt_at_mini(
    table: str, first: str, second: str, column: str, tmp_path: Path
) -> None:
    before, after = (resolve(find_cell(f"{table}/{row}/{column}"), "mini") for row in (first, second))
    plain = fingerprint(after, tmp_path)
    paths = sorted(changed(before, after))
    if after.evaluation.args["sampler"].name == "rk45_sampler":
        paths = ["evaluation.sampler"]
    assert paths and all(path.startswith("evaluation.sampler") for path in paths)
    for path in paths:
        parts = path.split(".")
        tree = replaced(after.experiment, parts, value_at(before.experiment, parts))
        assert differences(fingerprint(dataclasses.replace(after, experiment=tree), tmp_path), plain), path


def test_channels_keep_their_proportion_and_classes_are_the_data_s() -> None:
    """A network that predicts variances has twice the data's channels at every scale; no classes stay none."""
    for row, full, mini in (("ours", 6, 2), ("e-stochastic", 3, 1)):
        table = "edm/table3" if row == "ours" else "edm/imagenet64"
        cell = find_cell(f"{table}/{row}/imagenet64-adm")
        for scale, channels, classes, heads in (("full", full, 1000, 64), ("mini", mini, 10, 4)):
            network = resolve(cell, scale).trajectory.args["denoiser"].args["model"].args
            assert (network["out_channels"], network["label_dim"], network["channels_per_head"]) == (
                channels, classes, heads,
            )  # fmt: skip
    assert of("a", "cifar10-uncond-vp", "mini").trajectory.args["data"].args["label_dim"] == 0


def test_channels_that_are_no_multiple_of_the_data_s_are_refused() -> None:
    cell = find_cell("edm/table3/ours/imagenet64-adm")
    with pytest.raises(UsageError, match="DhariwalUNet.out_channels is 6, no multiple of the 4 channels of an image"):
        resolve(cell, "mini", ["DhariwalUNet.in_channels = 4"])


def test_heun_and_euler_meet_at_equal_nfe_at_mini() -> None:
    def steps(cell: str) -> int:
        return resolve(find_cell(cell), "mini").evaluation.args["sampler"].args["num_steps"]

    column = "cifar10-uncond-vp"
    assert steps(f"edm/table3/algorithm1/{column}") == 2 * steps(f"edm/table3/heun/{column}") - 1 == 39
    assert steps(f"edm/figure2/algorithm1-16/{column}") == 2 * steps(f"edm/figure2/heun-8/{column}") - 1 == 11


def test_a_collision_is_named() -> None:
    full = {row: of(row, "cifar10-cond-vp", "full").experiment for row in "ab"}
    same = {row: of("a", "cifar10-cond-vp", "mini").experiment for row in "ab"}
    assert any(line.startswith("trajectory.batch: a 128 and b 512 are both 56") for line in collisions(full, same))


def test_the_scale_binds_no_key_of_a_row_or_column() -> None:
    for name in scale_names():
        text = (Path(__file__).parent.parent / "gin" / "scale" / f"{name}.gin").read_text()
        bound = [line.split("=")[0].strip() for line in text.splitlines() if "=" in line and not line.startswith("#")]
        assert all(key.split(".")[0] in ("Scale", "Execution") for key in bound), bound


def test_classes_are_replaced_where_there_are_any() -> None:
    factors = {"classes": 10}
    assert [scaled(value, "classes", factors) for value in (1000, 10, 0)] == [10, 10, 0]
    assert scaled(1000, "classes", {"classes": None}) == 1000


def test_a_paper_may_have_a_scale_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(assets.gin_dir(), tmp_path / "gin")
    own = tmp_path / "gin" / "scale" / "edm" / "mini.gin"
    own.parent.mkdir()
    own.write_text("include 'scale/mini.gin'\nScale.images = 4200\n")
    before = flatten(of("f", "ffhq-vp", "mini").experiment)["evaluation.selection.total_nimg"]
    monkeypatch.setattr("repro.assets.gin_dir", lambda: tmp_path / "gin")
    resolved = of("f", "ffhq-vp", "mini")
    assert resolved.scale == "mini"
    assert flatten(resolved.experiment)["evaluation.selection.total_nimg"] == pytest.approx(before / 2, abs=1)


def test_declared_units_exist_and_name_parameters() -> None:
    from repro.config import parameters

    for name, target in REGISTRY.items():
        for parameter, unit in getattr(target, "UNITS", {}).items():
            assert unit in UNIT_NAMES and parameter in parameters(name), f"{name}.{parameter}"


def test_mini_is_the_full_experiment_with_other_sizes() -> None:
    full, mini = of("f", "ffhq-vp", "full"), of("f", "ffhq-vp", "mini")
    before, after = flatten(full.experiment), flatten(mini.experiment)
    assert after["trajectory.data.resolution"] == 16 and before["trajectory.data.resolution"] == 64
    assert after["trajectory.denoiser.model.attn_resolutions"] == [4]
    assert after["trajectory.batch"] == 59 and after["evaluation.num_samples"] == 2000
    kept = ("dropout", "label_dropout", "channel_mult", "resample_filter", "augment_dim")
    for key in kept:
        assert after[f"trajectory.denoiser.model.{key}"] == before[f"trajectory.denoiser.model.{key}"]
    for key in ("trajectory.lr.lr", "trajectory.augment.p", "trajectory.loss.P_mean", "evaluation.sampler.rho"):
        assert after[key] == before[key]


def test_sampler_steps_increase_strictly() -> None:
    pairs = [(2, 2), (18, 8), (40, 12)]
    assert [mapped("steps", n, pairs) for n in (2, 18, 29, 40)] == [2, 8, 10, 12]
    with pytest.raises(UsageError, match="maps 2 to 40"):
        mapped("steps", 41, pairs)
    with pytest.raises(UsageError, match="increase strictly"):
        check_map("steps", [(2, 2), (18, 8), (40, 8)])


def replaced(tree: Node, path: list[str], value: Any) -> Node:
    inner = value if len(path) == 1 else replaced(tree.args[path[0]], path[1:], value)
    return dataclasses.replace(tree, args={**tree.args, path[0]: inner})


def value_at(tree: Node, path: list[str]) -> Any:
    found = tree.args.get(path[0])
    return found if len(path) == 1 or not isinstance(found, Node) else value_at(found, path[1:])


def perturbations(column: str, rows: str = "bcdef") -> list[tuple[str, str, Any]]:
    """(row, path, other value) for every key in which a row differs from the one before, taken back alone."""
    found = []
    for first, second in PAIRS:
        if second not in rows:
            continue
        before, after = of(first, column, "mini"), of(second, column, "mini")
        for path in sorted(changed(before, after)):
            parts = path.split(".")
            if path not in flatten(after.experiment):
                continue  # belongs to a part that the row replaced as a whole
            here, there = value_at(after.experiment, parts), value_at(before.experiment, parts)
            inside_new_part = there is None and isinstance(here, float)
            if inside_new_part and not here:
                continue  # an option of a new part that is off, as published
            if isinstance(here, Node) or not isinstance(there, Node | None) or path.endswith(".augment"):
                found.append((second, path, there))
            elif inside_new_part and not parts[-1].endswith(("_std", "_max", "_prob")):
                found.append((second, path, here / 2 if parts[-1] != "xflip" else 1.0))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "row"), [*(("cifar10-cond-vp", r) for r in "bcdef"), *(("cifar10-cond-ve", r) for r in "be")]
)
def test_every_key_on_which_rows_differ_is_felt_at_mini(column: str, row: str, tmp_path: Path) -> None:
    plain = fingerprint(of(row, column, "mini"), tmp_path)
    unfelt = []
    tried = perturbations(column, row)
    for _, path, value in tried:
        resolved = of(row, column, "mini")
        if path.endswith("augment_dim") or (path.endswith(".augment") and value is None):
            # The pipe and the labels of the network belong together: take both back.
            tree = replaced(resolved.experiment, ["trajectory", "augment"], None)
            tree = replaced(tree, ["trajectory", "denoiser", "model", "augment_dim"], 0)
        else:
            tree = replaced(resolved.experiment, path.split("."), value)
        if not differences(fingerprint(dataclasses.replace(resolved, experiment=tree), tmp_path), plain):
            unfelt.append(f"{path} = {value}")
    assert tried and unfelt == []


def test_the_test_above_sees_the_paper_s_changes() -> None:
    paths = {(row, path) for row, path, _ in perturbations("cifar10-cond-ve")}
    for row, path in (
        ("b", "trajectory.batch"),
        ("b", "trajectory.lr.lr"),
        ("b", "trajectory.lr.rampup_nimg"),
        ("b", "trajectory.clip_norm"),
        ("b", "trajectory.loss_reduction"),
        ("b", "trajectory.denoiser.model.dropout"),
        ("b", "evaluation.ema.halflife_nimg"),
        ("b", "evaluation.ema.rampup_ratio"),
        ("c", "trajectory.denoiser.model.channel_mult"),
        ("d", "trajectory.denoiser"),
        ("e", "trajectory.loss"),
        ("e", "evaluation.sampler.sigma_min"),
        ("f", "trajectory.augment"),
        ("f", "trajectory.augment.p"),
        ("f", "trajectory.data.xflip"),
    ):
        assert (row, path) in paths, (row, path)


def test_canonical_form_is_plain_json_of_equal_meaning() -> None:
    config = of("f", "cifar10-cond-vp", "mini").config
    assert config == canonical(of("f", "cifar10-cond-vp", "mini").experiment)
    assert config["class"] == "Experiment" and config["args"]["trajectory"]["revision"] == 1


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Scale.images = 0", "Scale.images must be positive"),
        ("BestSnapshot.interval_nimg = 0", "BestSnapshot.interval_nimg must be 1 or more"),
        ("BestSnapshot.total_nimg = -5", "BestSnapshot.total_nimg must be 1 or more"),
    ],
)
def test_sizes_of_nothing_are_refused(binding: str, message: str) -> None:
    cell = TABLE.cell("f", "cifar10-cond-vp")
    assert cell is not None
    with pytest.raises(UsageError, match=message):
        resolve(cell, "mini", [binding]).selection()

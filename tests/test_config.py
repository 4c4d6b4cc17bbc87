"""Composition: what a configuration resolves to, where it was set, and how mistakes are named."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import pytest

import gin
import repro.experiment  # noqa: F401
from repro import assets
from repro.cells import resolve
from repro.config import REGISTRY, Node, build, canonical, flatten, flatten_origins, parameters
from repro.errors import UsageError
from repro.identity import digest
from repro.tables import find_cell, load_table

CELL = "edm/table2/f/cifar10-cond-vp"


def nodes(value: object) -> list[Node]:
    """All nodes of a tree."""
    if not isinstance(value, Node):
        return []
    return [value, *(inner for item in value.args.values() for inner in nodes(item))]


@pytest.mark.parametrize("cell", load_table("edm/table2").cells[::5], ids=lambda cell: cell.name)
def test_the_tree_holds_every_parameter_of_everything_it_builds(cell: object) -> None:
    for node in nodes(resolve(cell, "mini").experiment):  # type: ignore[arg-type]
        assert set(node.args) == set(parameters(node.name))
        assert set(node.origins) == set(node.args)


def test_building_needs_nothing_but_the_tree() -> None:
    experiment = resolve(find_cell(CELL), "mini").experiment
    gin.clear_config()
    built = build(experiment)
    assert built.trajectory.batch == 64 and built.trajectory.denoiser.model.augment_dim == 9


def test_only_the_composition_reads_gin() -> None:
    readers = {
        path.name
        for path in assets.PACKAGE.rglob("*.py")
        if re.search(r"^\s*(import|from) gin\b", path.read_text(), re.MULTILINE)
    }
    assert readers == {"config.py", "gin_walk.py"}


def test_constructors_store_or_use_every_parameter_they_declare() -> None:
    for name, target in REGISTRY.items():
        function = target.__init__ if inspect.isclass(target) else target
        written = inspect.isfunction(function) and not hasattr(target, "__dataclass_fields__")
        source = inspect.getsource(function) if written else ""
        for parameter in parameters(name):
            assert not source or len(re.findall(rf"\b{parameter}\b", source)) > 1, f"{name}.{parameter}"


def test_origins_name_file_and_line_and_the_macro() -> None:
    resolved = resolve(find_cell(CELL))
    origins = flatten_origins(resolved.experiment)

    def line(file: str, text: str) -> str:
        lines = (assets.gin_dir() / file).read_text().splitlines()
        return f"{file}:{next(i for i, found in enumerate(lines, 1) if found.startswith(text))}"

    assert origins["trajectory.batch"] == line("edm/parts/cifar10.gin", "TUNED_BATCH") + " (%TUNED_BATCH)"
    assert origins["trajectory.lr.rampup_nimg"] == line("edm/table2/b.gin", "LinearRampup.rampup_nimg")
    assert origins["trajectory.loss_scale"] == "default"
    changed = resolve(find_cell(CELL), bindings=["Trajectory.loss_scale = 2"])
    assert flatten_origins(changed.experiment)["trajectory.loss_scale"] == "--gin 'Trajectory.loss_scale = 2'"


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Trajectry.batch = 64", "no configurable 'Trajectry'; did you mean 'Trajectory'"),
        ("Trajectory.bacth = 64", "no parameter 'bacth'; did you mean 'batch'"),
        ("Trajectory.batch = %TUNED_BACH", "%TUNED_BACH is not defined; did you mean 'TUNED_BATCH'"),
        ("Trajectory.loss = @EDMLos", "@EDMLos is not defined; did you mean 'EDMLoss'"),
        ("Trajectory.batch = 2*3", "values are Python literals"),
        ("Trajectory.batch = 'many'", "Trajectory.batch: expected an integer, not 'many'"),
        ("Trajectory.loss_reduction = 'median'", "expected one of 'sum', 'mean', 'half_sum'"),
        ("Trajectory.loss = 3", "Trajectory.loss: expected a reference"),
        ("VPLoss.beta_d = 19", "nothing uses VPLoss.beta_d"),
        ("NEW_MACRO = 3", "nothing uses the macro NEW_MACRO"),
        ("", "binds nothing"),
    ],
)
def test_a_wrong_binding_is_one_clear_line(binding: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(find_cell(CELL), "mini", [binding])
    assert message in str(error.value) and "--gin" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def gin_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the Gin files to spoil."""
    shutil.copytree(assets.gin_dir(), tmp_path / "gin")
    monkeypatch.setattr(assets, "gin_dir", lambda: tmp_path / "gin")
    return tmp_path / "gin" / "edm" / "table2" / "f.gin"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AugmentPipe.anisot = 1", "AugmentPipe has no parameter 'anisot'; did you mean 'aniso'"),
        ("include 'edm/table2/ee.gin'", "include of 'edm/table2/ee.gin', which does not exist; did you mean"),
        ("VELoss.sigma_max = 3", "nothing uses VELoss.sigma_max"),
        ("import os", "imports have no place"),
    ],
)
def test_a_wrong_row_line_names_file_and_line(gin_tree: Path, line: str, message: str) -> None:
    text = gin_tree.read_text()
    gin_tree.write_text(text + line + "\n")
    with pytest.raises(UsageError) as error:
        resolve(find_cell(CELL), "mini")
    assert message in str(error.value)
    assert f"edm/table2/f.gin:{len(text.splitlines()) + 1}" in str(error.value)


def test_unused_lines_of_columns_and_included_rows_are_fine() -> None:
    flat = flatten(resolve(find_cell("edm/table2/e/cifar10-cond-vp")).experiment)
    assert "trajectory.loss.beta_d" not in flat and flat["trajectory.loss"] == "EDMLoss"


def test_hashes_depend_on_values_alone() -> None:
    cell = find_cell(CELL)
    bindings = ["Trajectory.batch = 128", "LinearRampup.lr = 1"]
    first, second = resolve(cell, "mini", bindings), resolve(cell, "mini", bindings[::-1])
    assert first.evaluation_hash == second.evaluation_hash
    assert resolve(cell, "mini", ["LinearRampup.lr = 1.0", "Trajectory.batch = 128"]).run == first.run
    assert resolve(cell, "mini", ["Trajectory.batch = 512"]).run == resolve(cell, "mini").run
    assert resolve(cell, "mini").run != first.run


def test_execution_and_tracking_are_outside_the_hashes_and_the_seed_is_inside() -> None:
    cell = find_cell(CELL)
    base = resolve(cell, "mini")
    assert resolve(cell, "mini", ["Execution.sample_batch = 7"]).evaluation_hash == base.evaluation_hash
    assert base.with_seed(1).trajectory_hash != base.trajectory_hash
    longer = resolve(cell, "mini", ["BestSnapshot.total_nimg = 400_000_000"])
    assert longer.trajectory_hash == base.trajectory_hash and longer.evaluation_hash != base.evaluation_hash


def test_revision_counts_and_a_neutral_value_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = resolve(find_cell(CELL)).trajectory
    before = digest(canonical(tree))
    monkeypatch.setattr(REGISTRY["EDMLoss"], "REVISION", 2, raising=False)
    assert digest(canonical(tree)) != before
    monkeypatch.undo()
    monkeypatch.setattr(REGISTRY["Trajectory"], "NEUTRAL", {"clip_norm": None}, raising=False)
    assert "clip_norm" not in canonical(tree)["args"]
    assert canonical(tree.replace(clip_norm=1.0))["args"]["clip_norm"] == 1.0

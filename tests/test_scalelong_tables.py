"""ScaleLong's tables: rows that differ in the scaling alone, columns of the published recipe, and what is not known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro import assets
from repro.cells import Resolved, resolve
from repro.config import build, flatten
from repro.diffusion.draws import StepDraws
from repro.diffusion.samplers import count_nfe
from repro.errors import UsageError
from repro.results.collect import CellResult, Collection
from repro.results.render import cells_of, notes
from repro.scale import collisions
from repro.tables import load_table

TABLE = load_table("scalelong/table1")
METHODS = ("none", "sqrt2", "cs", "ls")
MODEL = "trajectory.denoiser.model"
SCALING = f"{MODEL}.skip_scaling"
BASELINES = {
    "cifar10-uvit-s2": 3.11,
    "celeba64-uvit-s4": 2.87,
    "imagenet64-uvit-m4": 5.85,
    "imagenet64-uvit-l4": 4.26,
    "coco-uvit-s2": 5.95,
    "coco-uvit-s2-deep": 5.48,
}
OTHERS = ("scalelong/kappa", "scalelong/batch", "scalelong/depth", "scalelong/ls")


def of(row: str, column: str = "cifar10-uvit-s2", scale: str = "full", table: str = "scalelong/table1") -> Resolved:
    cell = load_table(table).cell(row, column)
    assert cell is not None
    return resolve(cell, scale)


def differences(first: Resolved, second: Resolved) -> dict[str, Any]:
    ours, theirs = flatten(second.experiment), flatten(first.experiment)
    return {path: ours.get(path) for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}


def test_only_the_baselines_have_a_reference() -> None:
    assert tuple(TABLE.rows) == METHODS and len(TABLE.columns) == 8
    found = {(cell.row, cell.column): cell.reference["FID"] for cell in TABLE.cells if cell.reference}
    assert found == {("none", column): value for column, value in BASELINES.items()}
    assert {cell.column for cell in TABLE.cells if cell.reference_only} == {"coco-unet"}
    unpublished = [column for column, label in TABLE.columns.items() if "backbone not published" in label]
    assert unpublished == ["cifar10-unet", "coco-unet"]
    for name in OTHERS:
        assert not any(cell.reference for cell in load_table(name).cells)
        assert load_table(name).reference_file == TABLE.reference_file


def test_a_reader_fills_in_a_value(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in assets.tables_dir().glob("scalelong_*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    csv = tmp_path / "scalelong_reference.csv"
    text = csv.read_text()
    monkeypatch.setattr(assets, "tables_dir", lambda: tmp_path)
    load = load_table.__wrapped__
    csv.write_text(text.replace("ls,cifar10-unet,FID,,", "ls,cifar10-unet,FID,1.25,page 7"))
    assert load("scalelong/table1").cell("ls", "cifar10-unet").reference == {"FID": 1.25}
    csv.write_text(text + "scalelong/kappa,cs-070,cifar10-uvit-s2,FID,3.5,page 8\n")
    assert load("scalelong/kappa").cell("cs-070", "cifar10-uvit-s2").reference == {"FID": 3.5}
    csv.write_text(text + "scalelong/kappa,cs-7,cifar10-uvit-s2,FID,3.5,page 8\n")
    with pytest.raises(UsageError, match="scalelong_reference.csv has a row 'cs-7' that scalelong/kappa has not"):
        load("scalelong/kappa")


def test_the_papers_orientation_and_what_the_caption_says() -> None:
    results = [CellResult(cell, "FID", [], [], ("FID",)) for cell in TABLE.cells]
    collection = Collection(TABLE, "full", results, [])
    headers, body = cells_of(collection)
    assert headers[1::2] == ["none: FID", "1/sqrt(2): FID", "CS (kappa 0.5): FID", "LS: FID"]
    assert [line[0] for line in body] == list(TABLE.columns.values())
    assert body[0][1:] == ["missing", "3.11", "missing", "none", "missing", "none", "missing", "none"]
    text = "\n".join(notes(collection))
    assert "6 of the table's 32 cells have a reference" in text and "tables/scalelong_reference.csv" in text
    assert "† cs: inferred setting" in text and "† cifar10-unet, coco-unet" not in text
    assert "† cifar10-unet: inferred setting" in text and "† none: inferred setting" in text


@pytest.mark.parametrize("column", [*BASELINES, "cifar10-unet"])
@pytest.mark.parametrize("scale", ["full", "mini", "ci"])
def test_rows_differ_in_the_scaling_alone(column: str, scale: str) -> None:
    none = of("none", column, scale)
    assert flatten(none.experiment)[SCALING] is None
    for row in METHODS[1:]:
        assert all(path.startswith(SCALING) for path in differences(none, of(row, column, scale)))
    if scale != "full":
        full, small = ({row: of(row, column, name).experiment for row in METHODS} for name in ("full", scale))
        assert collisions(full, small) == []


def test_without_scaling_the_identity_does_not_know_of_it() -> None:
    model = of("none").config["args"]["trajectory"]["args"]["denoiser"]["args"]["model"]
    assert model["class"] == "UViT" and "skip_scaling" not in model["args"]
    assert len({of(row).trajectory_hash for row in METHODS}) == 4


def test_tables_share_their_runs() -> None:
    assert of("cs-050", table="scalelong/kappa").evaluation_hash == of("cs").evaluation_hash
    assert of("ls", table="scalelong/ls").evaluation_hash == of("ls").evaluation_hash
    for table in ("scalelong/batch", "scalelong/depth"):
        assert of("sqrt2", table=table).evaluation_hash == of("sqrt2").evaluation_hash


@pytest.mark.parametrize("table", OTHERS)
def test_grids_differ_at_mini_as_at_full(table: str) -> None:
    for column in load_table(table).columns:
        rows = [cell.row for cell in load_table(table).cells if cell.column == column]
        full, small = ({row: of(row, column, name, table).experiment for row in rows} for name in ("full", "mini"))
        assert collisions(full, small) == []
    row = next(iter(load_table(table).rows))
    columns = list(load_table(table).columns)
    full, small = ({c: of(row, c, name, table).experiment for c in columns} for name in ("full", "mini"))
    assert collisions(full, small) == []


@pytest.mark.parametrize("batch", [64, 128, 256, 512])
def test_batch_sizes_have_equal_numbers_of_steps(batch: int) -> None:
    resolved = of("none", "cifar10-uvit-s2" + ("" if batch == 128 else f"-b{batch}"), table="scalelong/batch")
    trajectory, evaluation = build(resolved.trajectory), resolved.evaluation
    assert trajectory.batch == batch and trajectory.lr(2_500 * batch) == 2e-4 == 2 * trajectory.lr(1_250 * batch)
    assert resolved.ema().beta(0, batch) == pytest.approx(0.9999)
    assert resolved.selection().milestones() == [50_000 * batch * k for k in range(1, 11)]
    assert evaluation.args["num_samples"] == 50_000


def test_the_published_recipe_by_column() -> None:
    """Specification, section 4.3."""
    expected = {
        "cifar10-uvit-s2": (2e-4, [0.99, 0.999], 2_500, 128, 500_000, 1000, 50_000),
        "celeba64-uvit-s4": (2e-4, [0.99, 0.99], 5_000, 128, 500_000, 1000, 50_000),
        "imagenet64-uvit-l4": (3e-4, [0.99, 0.99], 5_000, 1024, 300_000, 50, 50_000),
        "coco-uvit-s2": (2e-4, [0.9, 0.9], 5_000, 256, 1_000_000, 100, 30_000),
    }
    for column, (lr, betas, warmup, batch, steps, nfe, samples) in expected.items():
        resolved = of("none", column)
        flat = flatten(resolved.experiment)
        assert flat["trajectory.lr.lr"] == lr and flat["trajectory.optimizer.betas"] == betas
        assert flat["trajectory.batch"] == batch and flat["trajectory.lr.rampup_nimg"] == warmup * batch
        assert resolved.selection().milestones()[-1] == steps * batch
        assert flat["trajectory.optimizer.weight_decay"] == 0.03
        assert count_nfe(build(resolved.evaluation.args["sampler"])) == nfe
        assert flat["evaluation.num_samples"] == flat["evaluation.protocol.n"] == samples
        preview = resolved.preview()
        assert preview is not None and preview.evaluation_hash != resolved.evaluation_hash
        told = flatten(preview.experiment)
        assert told["evaluation.num_samples"] == told["evaluation.protocol.n"] == 10_000
        assert told["evaluation.sampler.evaluations"] == 50 and told["evaluation.preview"] is None


@pytest.mark.parametrize("column", [*BASELINES, "cifar10-unet"])
def test_small_networks_train_and_sample(column: str) -> None:
    """One loss with its gradient and a few steps of the sampler, with gates in the network."""
    resolved = of("ls", column, "mini")
    torch.manual_seed(0)
    trajectory = build(resolved.trajectory)
    net, side = trajectory.denoiser, trajectory.data.resolution
    images = torch.rand(2, 1, side, side)
    condition = torch.eye(10)[:2] if net.label_dim else None
    if net.context_shape:
        condition = torch.randn(2, *net.context_shape)
    losses = trajectory.loss(net, images, condition, draws=StepDraws(0, 0, 2))
    torch.autograd.backward(losses.sum())
    assert losses.shape == (2,) and losses.isfinite().all()
    sampler = build(resolved.evaluation.args["sampler"])
    fewer = {name: 4 for name in ("num_steps", "evaluations") if name in sampler.keywords}
    found = sampler.func(net.eval(), torch.randn(2, 1, side, side), condition, **{**sampler.keywords, **fewer})
    assert found.shape == images.shape and found.isfinite().all()

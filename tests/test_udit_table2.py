"""U-DiT's Table 2: rows as printed, networks of the counted sizes, and the same rows small enough to run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro import assets
from repro.cells import Resolved, resolve
from repro.config import build, flatten
from repro.diffusion.draws import StepDraws
from repro.diffusion.samplers import count_nfe
from repro.models.counting import cost
from repro.scale import collisions
from repro.tables import load_table

TABLE = load_table("udit/table2")
PRINTED = {
    "dit-s-2": (67.40, 11.93, 20.44, 0.368, 0.559, 6.07),
    "udit-s": (31.51, 8.97, 51.62, 0.543, 0.633, 6.04),
    "dit-l-4": (46.10, 9.17, 31.05, 0.472, 0.612, 19.70),
    "dit-b-2": (42.84, 8.24, 33.66, 0.491, 0.629, 23.02),
    "udit-b": (16.64, 6.33, 85.15, 0.642, 0.639, 22.22),
    "dit-l-2": (23.27, 6.35, 59.63, 0.611, 0.635, 80.75),
    "dit-xl-2": (20.05, 6.25, 66.74, 0.632, 0.629, 118.68),
    "udit-l": (10.08, 5.21, 112.44, 0.702, 0.631, 85.00),
}
QUOTED = {
    "dit-s-2-original": 68.40,
    "dit-l-4-original": 45.64,
    "dit-b-2-original": 43.47,
    "dit-l-2-original": 23.33,
    "dit-xl-2-original": 19.47,
}
METRICS = ("FID", "sFID", "IS", "precision", "recall", "Gflops")
MODEL = "trajectory.denoiser.model"
PARAMETERS = {
    "dit-s-2": 32_865_056,
    "udit-s": 58_896_568,
    "dit-l-4": 457_988_224,
    "dit-b-2": 130_315_808,
    "udit-b": 231_251_304,
    "dit-l-2": 457_840_672,
    "dit-xl-2": 674_834_720,
    "udit-l": 916_335_304,
}


def of(row: str, scale: str = "full", bindings: tuple[str, ...] = ()) -> Resolved:
    cell = TABLE.cell(row, "imagenet256-400k")
    assert cell is not None
    return resolve(cell, scale, bindings)


def differences(first: str, second: str, scale: str = "full") -> dict[str, Any]:
    """What a row sets otherwise than another: dotted path -> its value."""
    ours, theirs = flatten(of(second, scale).experiment), flatten(of(first, scale).experiment)
    return {path: ours.get(path) for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}


def test_values_as_printed_in_the_papers_order() -> None:
    assert {cell.row: tuple(cell.reference[name] for name in METRICS) for cell in TABLE.computable} == PRINTED
    assert [cell.row for cell in TABLE.computable] == list(PRINTED)
    assert TABLE.shown == (*METRICS[:-1], "Mparams", "Gflops")


def test_lab_cards() -> None:
    for row, values in PRINTED.items():
        text = (assets.gin_dir() / f"udit/table2/{row}.gin").read_text()
        for word in ("# paper", "# table", "# printed", "# chosen", "# hardware", "# inferred", "# command"):
            assert word in text
        assert f"FID {values[0]:.2f}, " in text and f"{values[-1]:.2f} GFLOPs" in text


def test_quoted_rows_are_for_reference_only() -> None:
    quoted = {cell.row: cell for cell in TABLE.cells if cell.reference_only}
    assert {row: cell.reference["FID"] for row, cell in quoted.items()} == QUOTED
    assert quoted["dit-xl-2-original"].reference == {"FID": 19.47, "Gflops": 118.64}
    assert all(cell.gin == [] for cell in quoted.values())


def test_rows_differ_in_the_size_alone() -> None:
    assert differences("dit-s-2", "dit-b-2") == {f"{MODEL}.num_heads": 12}
    assert differences("dit-l-4", "dit-l-2") == {f"{MODEL}.patch_size": 2}
    assert differences("dit-l-2", "dit-xl-2") == {f"{MODEL}.depth": 28, f"{MODEL}.head_channels": 72}
    assert differences("udit-s", "udit-b") == {f"{MODEL}.num_heads": 8}
    assert differences("udit-b", "udit-l") == {f"{MODEL}.num_heads": 16}
    assert all(path.startswith(MODEL) for path in differences("dit-s-2", "udit-s"))


@pytest.mark.parametrize("row", PRINTED)
def test_rows_build_networks_of_the_counted_sizes(row: str) -> None:
    """The paper's GFLOPs are multiply-accumulates with norms and softmax: within 0.1 %."""
    found = cost(lambda: build(of(row).trajectory.args["denoiser"].args["model"]))
    assert found.trainable == PARAMETERS[row]
    assert found.traced / 1e9 == pytest.approx(PRINTED[row][-1], rel=1e-3)


@pytest.mark.parametrize("scale", ["mini", "ci"])
def test_rows_differ_alike_at_every_scale(scale: str) -> None:
    rows = list(PRINTED)
    for first, second in zip(rows, rows[1:], strict=False):
        assert differences(first, second, scale).keys() == differences(first, second).keys()
    full, small = ({row: of(row, name).experiment for row in rows} for name in ("full", scale))
    assert collisions(full, small) == []


@pytest.mark.parametrize("row", PRINTED)
def test_small_networks_train_and_sample(row: str) -> None:
    """One loss with its gradient and a few steps of the sampler, in the form that the loop and `generate` call them."""
    resolved = of(row, "mini")
    torch.manual_seed(0)
    net, loss = build(resolved.trajectory.args["denoiser"]), build(resolved.trajectory.args["loss"])
    assert (net.img_resolution, net.img_channels, net.label_dim) == (16, 1, 10)
    images, labels = torch.rand(2, 1, 16, 16), torch.eye(10)[:2]
    losses = loss(net, images, labels, draws=StepDraws(0, 0, 2))
    torch.autograd.backward(losses.sum())
    assert losses.shape == (2,) and losses.isfinite().all()
    sampler = build(resolved.evaluation.args["sampler"])
    assert count_nfe(sampler) == sampler.keywords["num_steps"] < 250
    sampled = sampler.func(net.eval(), torch.randn(2, 1, 16, 16), labels, **{**sampler.keywords, "num_steps": 2})
    assert sampled.shape == (2, 1, 16, 16) and sampled.isfinite().all()


def test_mini_has_the_tables_metrics_and_whole_batches() -> None:
    resolved = of("udit-s", "mini")
    protocol, data = resolved.protocol(), resolved.dataset()
    assert set(protocol.metrics) == {f"digits {name}" for name in ("FD", "sFD", "IS", "precision", "recall")}
    assert data.whole_batches == resolved.trajectory.args["batch"] == 32
    assert of("udit-s").dataset().whole_batches == of("udit-s").trajectory.args["batch"] == 256


def test_guidance_and_length_share_a_trajectory() -> None:
    plain = of("udit-b")
    guided = of("udit-b", bindings=("ancestral_sampler.guidance = 1.5",))
    longer = of("udit-b", bindings=("FinalSnapshot.total_nimg = 256_000_000",))
    assert plain.trajectory_hash == guided.trajectory_hash == longer.trajectory_hash
    assert len({r.evaluation_hash for r in (plain, guided, longer)}) == 3
    assert plain.selection().milestones() == [102_400_000]

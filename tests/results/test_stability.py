"""The stability report: its arithmetic by hand, on networks of every family, in training, and as files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.cells import resolve
from repro.cli import main
from repro.config import build
from repro.errors import UsageError
from repro.launch.plan import Folders
from repro.launch.work import build_trajectory
from repro.models.u_shape import u_shape
from repro.models.uvit import UViT
from repro.results import stability
from repro.results.stability_report import PROBED, probe_of, rank_correlation, study
from repro.tables import find_cell
from repro.verbs.stability import default_name

FAMILIES = (
    "edm/table2/f/cifar10-cond-vp",
    "edm/table2/a/cifar10-cond-ve",
    "edm/imagenet64/e-deterministic/imagenet64-adm",
    "edm2/table1/g/imagenet512",
    "udit/table2/udit-s/imagenet256-400k",
    "scalelong/table1/ls/imagenet64-uvit-m4",
    "scalelong/table1/ls/coco-uvit-s2",
    "scalelong/table1/ls/cifar10-unet",
)


def test_oscillation_by_hand() -> None:
    assert stability.oscillation([2.0, 4.0, 3.0, 3.0]) == (pytest.approx(2 / 3), pytest.approx(math.sqrt(14) / 9))
    assert all(math.isnan(value) for value in stability.oscillation([1.0]))


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 3, 9]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 2], [1, 2])) and math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_the_largest_gain_is_that_of_the_jacobian() -> None:
    torch.manual_seed(0)
    net = UViT(4, 1, 2, 2, 2, 8).eval()
    x, delta = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4) * 0.01
    probe = stability.Probe(x, torch.tensor([3.0, 900.0]), torch.zeros_like(x), delta)
    found = stability.largest_gain(net, probe, 60)
    for index in range(2):

        def output(flat: Tensor, index: int = index) -> Tensor:
            result: Tensor = net(flat.reshape(1, 1, 4, 4), probe.time[index : index + 1])
            return result.flatten()

        jacobian: Any = torch.autograd.functional.jacobian(output, x[index].flatten())  # type: ignore[no-untyped-call]
        assert float(found[index]) == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=2e-3)
    measured = stability.measure(net, probe)
    assert (measured.gain <= found * 1.01).all()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_measured(name: str, data: Path) -> None:
    resolved = resolve(find_cell(name), "mini")
    trajectory = build_trajectory(resolved)
    net = trajectory.denoiser.eval()
    probe = probe_of(net, trajectory.data.open(data, 0), 4)
    assert probe.delta.flatten(1).norm(dim=1).tolist() == pytest.approx([0.05] * 4)
    found = stability.measure(net.model, probe)
    shape = u_shape(net.model)
    assert found.decoder_norms.shape == (len(shape.decoder), 4) and len(found.coefficients) == len(shape.decoder)
    assert found.block_gradients.shape == (len(shape.parts),) and math.isfinite(found.loss)
    assert float(found.block_gradients.square().sum()) <= found.gradient**2 * (1 + 1e-6)
    learned = "/ls/" in name
    assert found.sum_squares < len(shape.decoder) if learned else found.sum_squares == len(shape.decoder)
    assert (min(found.spread) > 0) == learned


def test_a_network_without_long_skips(data: Path) -> None:
    resolved = resolve(find_cell("udit/table2/dit-s-2/imagenet256-400k"), "mini")
    with pytest.raises(UsageError, match="DiT has no long skips to look at"):
        study(resolved, Folders(data / "none", (), data, None))


def test_the_probe_of_a_precondition_asks_for_the_raw_answer(data: Path) -> None:
    """Where the raw network gives the probe's target, the denoiser gives the image."""
    resolved = resolve(find_cell(FAMILIES[0]), "mini")
    net = build(resolved.trajectory.args["denoiser"])
    stream = build_trajectory(resolved).data.open(data, 0)
    probe = probe_of(net, stream)

    class Answer(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, *rest: Any, **more: Any) -> Tensor:
            torch.testing.assert_close(x, probe.x)
            torch.testing.assert_close(noise, probe.time)
            return probe.target

    sigma = (1.2 * torch.special.ndtri((torch.arange(PROBED) + 0.5) / PROBED) - 1.2).exp()
    _, _, c_in, _ = net.coefficients(sigma[:, None, None, None])
    net.model = Answer()
    expected = stream.batch(0, PROBED)[0].float() / 127.5 - 1
    torch.testing.assert_close(net(probe.x / c_in, sigma), expected, atol=1e-4, rtol=1e-4)


def test_in_training_it_writes_figure_and_tables(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [f"scalelong/table1/{row}/cifar10-uvit-s2" for row in ("none", "cs", "ls")]
    words = ["--scale", "mini", "--steps", "4", "--every", "2", "--data", str(data), "--runs", str(tmp_path / "runs")]
    assert main(["stability", *cells, *words, "--out", str(tmp_path / "report"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["sum of kappa^2"] for line in found["cells"]][:2] == [3, pytest.approx(1.3125)]
    assert [line["images"] for line in found["cells"]] == [64] * 3
    assert {line["skip"] for line in found["layers"]} == {1, 2, 3}
    assert all(line["oscillation"] is not None for line in found["layers"])
    assert set(found["correlations"]) >= {"squared norm, fresh", "gradient", "gain"}
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "report.svg").read_bytes()
    with open(tmp_path / "report.layers.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 9
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "-1"], "--steps: must be 1 or more, not -1"),
        (["--every", "2"], "--every needs --steps"),
        (["--steps", "2", "--every", "0"], "--every: must be 1 or more, not 0"),
        (["--seed", "-1"], "--seed: must be 0 or more, not -1"),
    ],
)
def test_numbers_that_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stability", "scalelong/table1/ls/cifar10-uvit-s2", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_report_overwrites_none_but_its_own() -> None:
    one, two, three = (
        resolve(find_cell(f"scalelong/table1/{row}/cifar10-uvit-s2"), "mini") for row in ("none", "cs", "ls")
    )
    name = default_name([one], 0, 10)
    assert name.startswith("stability-scalelong-table1-none-cifar10-uvit-s2.mini.") and name == default_name(
        [one], 0, 5
    )
    others = [[one.with_seed(1)], [one, two], [one, three], [two]]
    names = {
        name,
        default_name([one], 4, 2),
        default_name([one], 4, 1),
        *(default_name(cells, 0, 10) for cells in others),
    }
    assert len(names) == 7 and "-and-1-more." in default_name([one, two], 0, 10)

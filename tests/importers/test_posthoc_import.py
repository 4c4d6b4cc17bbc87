"""EDM2's post-hoc averages of imported snapshots: what tracking would have given, from files in float16."""

from __future__ import annotations

from pathlib import Path

import published_files as files
import pytest
import torch
from helpers import data_dir
from torch import Tensor

from repro import importers
from repro.cells import resolve
from repro.cli import main
from repro.errors import UsageError
from repro.importers import edm2, folders, posthoc
from repro.importers.importing import import_file
from repro.published import read_imported
from repro.results.records import read_all
from repro.tables import find_cell
from repro.training.ema import PowerEMA

CONFIG = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 4, "channel_mult": [1],
    "num_blocks": 1, "attn_resolutions": [], "logvar_channels": 4,
}  # fmt: skip
STEPS, EVERY, BATCH = 512, 32, 2**20
WIDTHS = (0.05, 0.1)


@pytest.fixture(scope="module")
def form() -> dict[str, Tensor]:
    torch.manual_seed(0)
    described = importers.FAMILIES["edm2"].describe("Precond", CONFIG)
    return dict(described.build().state_dict())


@pytest.fixture(scope="module")
def tracked(form: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[float, float]]:
    """Imported snapshots of weights that all move alike, and the averages at the end by their width."""
    folder = tmp_path_factory.mktemp("snapshots")
    generator = torch.Generator().manual_seed(1)
    path = 1 + torch.randn(STEPS + 1, generator=generator, dtype=torch.float64).cumsum(0) / STEPS**0.5
    averages = dict.fromkeys((*WIDTHS, 0.07, 0.15), float(path[0]))
    found = []
    for step in range(1, STEPS + 1):
        for std in averages:
            beta = PowerEMA(std).beta((step - 1) * BATCH, BATCH)
            averages[std] = beta * averages[std] + (1 - beta) * float(path[step])
        if step % EVERY == 0:
            for std in WIDTHS:
                name = f"edm2-tiny-{step * BATCH // 1000:07d}-{std:.3f}"
                parameters = {key: value if key.endswith(("freqs", "phases")) else value * averages[std]
                              for key, value in form.items()}  # fmt: skip
                file = files.edm2_snapshot(folder / f"{name}.pkl", CONFIG, parameters)
                found.append(import_file(file, folder / name)[0].folder)
    return found, averages


def test_reconstructed_as_if_tracked(form: dict[str, Tensor], tracked: tuple[list[Path], dict[float, float]]) -> None:
    snapshots, averages = tracked
    for std in (0.07, 0.15, *WIDTHS):
        (state,) = posthoc.reconstruct_imported(snapshots, [std])
        assert state.keys() == form.keys()
        for key, value in form.items():
            fixed = key.endswith(("freqs", "phases"))
            expected = value.half().float() if fixed else value * averages[std]
            # float16 rounds a weight by 2^-11 of it; the coefficients of 32 files add up to a few times that
            assert torch.allclose(state[key], expected, rtol=0 if fixed else 0.02, atol=0 if fixed else 1e-3), key


def test_a_reconstruction_is_an_imported_folder(tracked: tuple[list[Path], dict[float, float]], tmp_path: Path) -> None:
    snapshots, _ = tracked
    made = posthoc.import_reconstruction(snapshots, 0.07, tmp_path / "a")
    assert posthoc.import_reconstruction(snapshots, 0.07, tmp_path / "a") == made
    assert (made.nimg, made.std, made.kind) == (STEPS * BATCH, 0.07, "ema")
    (state,) = posthoc.reconstruct_imported(snapshots, [0.07])
    assert all(torch.equal(value, state[key]) for key, value in folders.load(made.folder).state_dict().items())
    other = posthoc.import_reconstruction(snapshots[::-1], 0.07, tmp_path / "b")
    assert other.sha256 == made.sha256 != posthoc.import_reconstruction(snapshots, 0.1, tmp_path / "c").sha256
    assert made.weights.read_bytes() == other.weights.read_bytes()


def test_what_cannot_be_reconstructed(tracked: tuple[list[Path], dict[float, float]], tmp_path: Path) -> None:
    snapshots, _ = tracked
    with pytest.raises(UsageError, match="an EMA of std 0.2 does not follow from 2 snapshots"):
        posthoc.reconstruct_imported(snapshots[:2], [0.2])
    with pytest.raises(UsageError, match="no snapshots"):
        posthoc.reconstruct_imported([], [0.1])
    file = snapshots[0].with_suffix(snapshots[0].suffix + ".pkl")
    renamed = file.with_name("renamed.pkl")
    renamed.write_bytes(file.read_bytes())
    import_file(renamed, tmp_path / "unknown")
    assert read_imported(tmp_path / "unknown").nimg is None
    with pytest.raises(UsageError, match="the time and the width of its average are not known"):
        posthoc.imported_snapshots([*snapshots, tmp_path / "unknown"])


@pytest.mark.slow
def test_one_command_scores_lengths_from_imported_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`repro ema --from-published`: one length that is stored and one that is reconstructed; nothing is trained."""
    cell, total = "edm2/table1/g/imagenet512", 64 * 1024
    bindings = [f"FinalSnapshot.total_nimg = {total * 10**6}", "Evaluation.num_samples = 1_000"]
    told = resolve(find_cell(cell), "ci", bindings).trajectory.args["denoiser"]
    model = {key: value for key, value in told.args["model"].args.items() if key in edm2.PUBLISHED}
    config = {**model, "sigma_data": 0.5, "logvar_channels": told.args["logvar_channels"], "use_fp16": True}
    torch.manual_seed(0)
    state = importers.FAMILIES["edm2"].describe("Precond", config).build().state_dict()
    for nimg in range(8192, total + 1, 8192):
        for std in WIDTHS:
            file = files.edm2_snapshot(tmp_path / f"x-{nimg // 1000:07d}-{std:.3f}.pkl", config, state)
            import_file(file, tmp_path / "published" / file.stem)
    gin = [word for binding in bindings for word in ("--gin", binding)]
    where = ["--runs", str(tmp_path / "runs"), "--data", str(data_dir()), "--published", str(tmp_path / "published")]
    command = ["ema", cell, "--scale", "ci", "--std", "0.05", "0.08", *gin, *where, "--from-published"]
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert "imported networks" in shown.err and "training" not in shown.err
    records, _ = read_all([tmp_path / "runs"])
    assert sorted(record.imported[0]["std"] for record in records) == [0.05, 0.08]
    assert [r.imported[0]["source"].startswith("posthoc-") for r in records if r.imported[0]["std"] == 0.08] == [True]
    assert main(command) == 0
    assert "all 2 records are there" in capsys.readouterr().err

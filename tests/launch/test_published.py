"""Imported weights in place of training: planned, evaluated, collected, exported."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import CELL, SIBLING, TINY, compute, data_dir, folders, scratch

sys.path.insert(0, str(Path(__file__).parent.parent / "importers"))
import published_files as files

from repro.cells import resolve
from repro.cli import main
from repro.errors import MissingPrerequisite, UsageError
from repro.importers import folders as imported_folders
from repro.importers.checkpoints import edm2_name
from repro.importers.importing import import_file
from repro.importers.nodes import as_json
from repro.launch.clean import survey
from repro.launch.plan import check_prerequisites, make_plan
from repro.launch.submissions import read_all as read_submissions
from repro.launch.work import Worker
from repro.published import (
    Imported,
    check_fits,
    files_of,
    find_imported,
    import_commands,
    imported_for,
    misfit,
    read_imported,
)
from repro.results.records import read_all
from repro.tables import find_cell, load_table, table_names

FILE = "edm-cifar10-32x32-cond-vp.pkl"


def published_arguments(cell: str) -> dict[str, Any]:
    """The constructor arguments with which the authors would have made a tiny cell's network."""
    denoiser = resolve(find_cell(cell), "ci", TINY).trajectory.args["denoiser"]
    model = dict(denoiser.args["model"].args)
    channels = model.pop("in_channels")
    del model["out_channels"]
    return {**model, "model_type": "SongUNet", "img_channels": channels, "sigma_data": denoiser.args["sigma_data"]}


def words(runs: Path, *more: str, bindings: Sequence[str] = TINY) -> list[str]:
    gin = [word for binding in bindings for word in ("--gin", binding)]
    return ["--scale", "ci", "--runs", str(runs), "--data", str(data_dir()), *gin, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cell, trained and evaluated."""
    runs = tmp_path_factory.mktemp("trained")
    compute(runs)
    return runs


@pytest.fixture(scope="module")
def published(trained: Path) -> Path:
    """A folder of imported checkpoints: the trained cell's weights, by way of a file in the published format."""
    (record, *_), _ = read_all([trained])
    snapshot = next(trained.glob(f"*/ema/{record.milestone_nimg / 1000:010.3f}-*.safetensors"))
    path = trained / FILE
    files.edm_snapshot(path, "EDMPrecond", published_arguments(CELL), safetensors.torch.load_file(snapshot))
    assert main(["import", str(path), "--out", str(trained / "published" / "f")]) == 0
    return trained / "published"


def test_imported_weights_score_what_trained_ones_do(
    trained: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ["reproduce", "edm/table2", "--rows", "e", "f", "--columns", "cifar10-cond-vp"]
    where = ["--from-published", "--published", str(published)]
    assert main([*table, *words(tmp_path, *where)]) == 0
    shown = capsys.readouterr()
    assert "1 imported network" in shown.err and "training run" not in shown.err
    assert re.search(r"\d imported +\|", shown.out) and f"imported weights, {FILE}" in shown.out
    assert "Trained here: no cell" in shown.out and "no record: e/cifar10-cond-vp" in shown.out
    (record,), problems = read_all([tmp_path])
    assert not problems
    assert record.weights == "imported" and len(record.imported) == 1
    assert record.imported[0]["sha256"] == read_imported(published / "f").sha256
    (other, *_), _ = read_all([trained])
    assert record.metrics == other.metrics, "the same weights and seeds score differently"
    assert record.trajectory_hash != other.trajectory_hash and record.evaluation_hash != other.evaluation_hash
    manifest = json.loads((tmp_path / record.trajectory_hash[:16] / "manifest.json").read_bytes())
    assert manifest["imported"]["source"] == FILE
    assert main([*table, *words(tmp_path, *where)]) == 0
    assert "nothing to compute: the record is there" in capsys.readouterr().err

    assert [one.kept for one in survey(tmp_path)] == [""], "repro clean understands it"
    both = words(tmp_path, "--runs", str(trained))
    assert main(["collect", *table[1:], *both, "--format", "json"]) == 0
    cell = json.loads(capsys.readouterr().out)["cells"][1]
    assert cell["weights"] == "trained" and "--from-published shows them" in cell["notes"] and cell["imported"] is None
    assert main(["collect", *table[1:], *both, "--format", "json", "--from-published"]) == 0
    cell = json.loads(capsys.readouterr().out)["cells"][1]
    assert cell["weights"] == "imported" and cell["imported"] == FILE and cell["verdict"] == ""


def test_a_cluster_evaluates_imported_weights_without_training(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake: Path
) -> None:
    profile = tmp_path / "mine.gin"
    profile.write_text("Cluster.partition = 'main'\nCluster.timeout = 30")
    options = words(tmp_path / "runs", "--from-published", "--published", str(published), "--json")
    table = ["edm/table2", "--rows", "e", "f", "--columns", "cifar10-cond-vp"]
    assert main(["plan", *table, *options]) == 0
    (line,) = json.loads(capsys.readouterr().out)["tables"]
    assert (line["cells"], line["complete"], line["experiments"], line["runs"], line["evaluations"]) == (1, 0, 1, 0, 1)
    assert main(["submit", *table, *options, "--cluster", str(profile)]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == {"evaluate0": "100"}
    (array,) = read_submissions([tmp_path / "runs"])[-1].arrays
    assert array.jobs[0].wanted[0].imported == (str(published / "f"),)


def test_another_network_is_refused_by_its_first_difference(
    trained: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bindings = (*TINY, "SongUNet.num_blocks = 12")
    where = words(tmp_path, "--from-published", "--published", str(published), bindings=bindings)
    assert main(["run", CELL, *where]) == 2
    assert "its SongUNet.num_blocks is 1, the cell's is 3" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/eval"))


def test_what_is_not_imported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = words(tmp_path, "--from-published", "--published", str(tmp_path))
    assert main(["run", CELL, *where]) == 3
    assert f"repro import {FILE}" in capsys.readouterr().err
    assert main(["run", SIBLING, *where]) == 2
    assert "no published weights are known" in capsys.readouterr().err
    assert main(["run", CELL, *where, "--train"]) == 2
    assert "give one of them" in capsys.readouterr().err


def given(cell: str, **changes: Any) -> Imported:
    """What an imported folder of a cell's own network at full scale says; its weights are missing."""
    denoiser = resolve(find_cell(cell)).trajectory.args["denoiser"]
    network = as_json(denoiser.args["model"] if denoiser.name == "DiscreteDenoiser" else denoiser)
    told = {"source": "x.pkl", "cell": "", "sha256": "0" * 64, "kind": "ema", "nimg": None, "std": None}
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    (folder / "weights.safetensors").touch()
    content = {"form": 1, "network": network, **told, **changes}
    (folder / "provenance.json").write_text(json.dumps(content))
    return read_imported(folder)


def test_starred_cells_evaluate_imported_weights(tmp_path: Path) -> None:
    """Tables 3 and 4, and row A unconditional: exit 3 with the command until the file is imported; none is trained."""
    where = folders(tmp_path)
    for table in ("edm/table2", "edm/table3", "edm/table4", "edm/imagenet64", "edm/figure2"):
        for cell in (cell for cell in load_table(table).computable if cell.starred):
            assert files_of(cell), f"{cell.name}: no published file"
    starred = find_cell("edm/table4/optimal/cifar10-uncond-vp")
    assert import_commands(starred) == "`repro import baseline-cifar10-32x32-uncond-vp.pkl`"
    with pytest.raises(
        MissingPrerequisite, match="`repro import baseline-cifar10-32x32-uncond-vp.pkl` makes them usable"
    ):
        check_prerequisites([starred], "full", [], where, train=False)
    known = {starred.name: [given(starred.name)]}
    with pytest.raises(MissingPrerequisite) as found:
        check_prerequisites([starred], "full", [], where, train=False, published=known)
    assert "repro import" not in str(found.value) and "repro data prepare" not in str(found.value)
    plan = make_plan([starred], "full", [], range(3), [tmp_path], known)
    assert [len(job.tasks) for job in plan.jobs] == [3], "three ranges of one network"
    assert {task.milestone for task in plan.jobs[0].tasks} == {200_000_000}
    best = find_cell(CELL)
    plan = make_plan([best], "full", [], [0], [tmp_path], {best.name: [given(CELL)]})
    assert [len(job.tasks) for job in plan.jobs] == [3], "a selected network is not selected again"


def test_time_and_average_must_be_the_cells() -> None:
    name = "edm2/table1/g/imagenet512"
    resolved = resolve(find_cell(name))
    check_fits(resolved, given(name, nimg=2**31, std=0.13))
    check_fits(resolved, given(name))
    with pytest.raises(UsageError, match=r"an average of std 0\.045, the cell's is of 0\.13"):
        check_fits(resolved, given(name, nimg=2**31, std=0.045))
    with pytest.raises(UsageError, match="after 134,217,728 images, the cell measures after 2,147,483,648"):
        check_fits(resolved, given(name, nimg=2**27, std=0.13))
    for cell in ("udit/table2/udit-b/imagenet256-400k", "edm/table3/ours/imagenet64-adm"):
        check_fits(resolve(find_cell(cell)), given(cell))
        other = given(cell)
        other.network["args"] = {**other.network["args"], "img_resolution": 8, "M": 7}
        with pytest.raises(UsageError, match=r"x\.pkl does not belong to .*its \w+\.\w+ is [78], the cell's is"):
            check_fits(resolve(find_cell(cell)), other)


def test_widths_that_a_published_file_leaves_to_the_network_are_the_cells() -> None:
    """Published EDM2 files tell None for the widths of features and embedding; rows have a number."""
    name = "edm2/table1/g/imagenet512"
    resolved = resolve(find_cell(name))
    for width, message in ((None, ""), (4, ""), (3, "EDM2UNet.channel_mult_emb is 3, the cell's is 4")):
        one = given(name)
        inner = one.network["args"]["model"]["args"]
        inner |= {"channel_mult_emb": width, "channel_mult_noise": 1}
        assert message in misfit(resolved.trajectory.args["denoiser"], None, None, one)
        if not message:
            check_fits(resolved, one)


def test_a_file_as_the_authors_pickle_it_fits_its_cell(tmp_path: Path) -> None:
    file = Path(__file__).parent.parent / "golden" / "cases" / "checkpoints" / "edm2_latent_cond-2147483-0.050.pkl"
    one, _ = import_file(file, tmp_path / "imported")
    sizes = {"model_channels": 4, "channel_mult": [1, 2], "channel_mult_emb": 2, "num_blocks": 1}
    sizes |= {"attn_resolutions": [4], "channels_per_head": 4}
    changed = ["RESOLUTION = 8", "LABEL_DIM = 6", "imagenet512/Latents.num_classes = 6", "PostHocEMA.std = 0.050"]
    changed += ["EDM2Precond.logvar_channels = 16", *(f"EDM2UNet.{key} = {value}" for key, value in sizes.items())]
    check_fits(resolve(find_cell("edm2/table1/g/imagenet512"), "full", changed), one)
    with pytest.raises(UsageError, match=r"EDM2UNet\.num_blocks is 1, the cell's is 2"):
        check_fits(resolve(find_cell("edm2/table1/g/imagenet512"), "full", [*changed, "EDM2UNet.num_blocks = 2"]), one)


def test_guided_cells_need_both_networks(tmp_path: Path) -> None:
    cell = find_cell("edm2/table2/m-cfg/imagenet512")
    main_file, guide_file = "edm2-img512-m-2147483-0.030.pkl", "edm2-img512-xs-uncond-2147483-0.030.pkl"
    assert import_commands(cell) == f"`repro import {main_file}` and `repro import {guide_file}`"
    network = given(cell.name, source=main_file, nimg=2**31, std=0.03)
    told = as_json(resolve(cell).evaluation.args["guide"].args["trajectory"].args["denoiser"])
    guide = given(cell.name, source=guide_file, network=told, sha256="1" * 64, nimg=2**31, std=0.03)
    assert imported_for(cell, [network]) == () and imported_for(cell, [guide]) == ()
    assert import_commands(cell, [network]) == f"`repro import {guide_file}`"
    both = imported_for(cell, [guide, network])
    assert both == (network, guide)
    (job,) = make_plan([cell], "full", [], [0], [tmp_path], {cell.name: both}).jobs
    assert len(job.tasks) == 3 and job.after == (), "neither is trained"
    resolved = resolve(cell)
    assert job.trajectory_hash == resolved.with_imported("0" * 64, "1" * 64).trajectory_hash
    assert resolved.with_imported("0" * 64, "2" * 64).evaluation_hash != job.tasks[0].evaluation_hash
    with pytest.raises(UsageError, match="does not belong to"):
        check_fits(resolved, guide, network)
    with pytest.raises(UsageError, match="needs 2 imported networks"):
        check_fits(resolved, network)


def test_names_of_published_files_say_what_their_cells_measure() -> None:
    """Size, time and width in a name of EDM2's are those that the cell binds; classes are those of the paper."""
    widths = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
    checked = 0
    for table in table_names():
        for cell in load_table(table).computable:
            for file in files_of(cell):
                resolved = resolve(cell)
                denoiser = resolved.trajectory.args["denoiser"]
                checked += 1
                if file.family == "edm2":
                    nimg, std = edm2_name(file.file)
                    assert nimg == resolved.evaluation.args["selection"].args["total_nimg"]
                    assert std == resolved.evaluation.args["ema"].args["std"]
                    model = denoiser.args["model"].args
                    assert model["model_channels"] == widths[file.file.split("-")[2]]
                    assert ("-uncond-" in file.file) == (model["label_dim"] == 0)
                elif file.file.startswith("edm-"):
                    assert denoiser.name == "EDMPrecond" and f"-{cell.column.rsplit('-', 1)[1]}.pkl" in file.file
                elif file.file.startswith("baseline-"):
                    kinds = {"vp.pkl": "VPPrecond", "ve.pkl": "VEPrecond", "adm.pkl": "iDDPMPrecond"}
                    assert denoiser.name == kinds[file.file.rsplit("-", 1)[1]]
    assert checked > 100


def test_export_is_imported_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "published" / "exported"
    assert main(["export", CELL, *words(trained, "--out", str(out))]) == 0
    card = (out / "README.md").read_text()
    (record, *_), _ = read_all([trained])
    assert f"# {CELL}" in card and record.evaluation_hash in card and "FID" in card
    assert f"| digits FD | {record.metrics['digits FD'].value:.4f} |" in card
    net = imported_folders.load(out)
    snapshot = next(trained.glob(f"*/ema/{record.milestone_nimg / 1000:010.3f}-*.safetensors"))
    assert all(
        torch.equal(net.state_dict()[key], value) for key, value in safetensors.torch.load_file(snapshot).items()
    )
    cell, runs = find_cell(CELL), tmp_path / "runs"
    (job,) = make_plan([cell], "ci", TINY, [0], [runs], {CELL: imported_for(cell, find_imported(out.parent))}).jobs
    assert Worker(folders(runs)).run(job) is None
    assert read_all([runs])[0][0].metrics == record.metrics
    capsys.readouterr()
    assert main(["export", CELL, *words(trained, "--out", str(out))]) == 2
    assert main(["export", CELL, *words(trained, "--out", str(out), "--seed", "7")]) == 3
    assert "no value of seed 7" in capsys.readouterr().err
    assert main(["export", SIBLING, *words(trained, "--out", str(out))]) == 3
    assert f"repro run {SIBLING}" in capsys.readouterr().err


def test_list_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--published", "--json"]) == 0
    rows = {row["file"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[FILE]["cells"] == [CELL] and rows[FILE]["sha256"] is None and rows[FILE]["nbytes"] == 223_000_000
    assert "edm2/table1/g/imagenet512" in rows["edm2-img512-s-2147483-0.130.pkl"]["cells"]
    assert main(["list", "edm2/table1", "--published"]) == 0
    assert "edm2-img512-s-2147483-0.130.pkl" in (shown := capsys.readouterr().out) and "edm-cifar10" not in shown

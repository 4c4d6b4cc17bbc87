"""Files in the published formats, written from known weights: what is imported is what was in them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import published_files as files
import pytest
import safetensors.torch
import torch
from torch import Tensor

from repro import importers
from repro.cells import resolve
from repro.cli import main
from repro.config import Composition, build
from repro.importers import checkpoints, folders
from repro.importers.shapes import recognise
from repro.importers.sources import File
from repro.published import PublishedFile, first_difference, published_files, read_imported
from repro.tables import find_cell

CASES = Path(__file__).parent.parent / "golden" / "cases"
sys.path.insert(0, str(CASES.parent))
from harness import Case, find_cases  # noqa: E402

SAMPLES = sorted(CASES.glob("checkpoints/*.p[kt]*"))


def networks() -> dict[str, Case]:
    """Every golden case of a whole network with its published arguments."""
    found = {}
    for path in find_cases(CASES):
        case = Case(path)
        if path.parent.name in ("edm", "edm2", "udit", "scalelong") and case.meta["kind"] in ("network", "precond"):
            if case.meta["name"] in (*_EDM, *_UVIT, "Precond", "UNet", "DiT", "U_DiT") and "params" in case.meta:
                found[f"{path.parent.name}/{path.stem}"] = case
    return found


_EDM = ("SongUNet", "DhariwalUNet", "EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
_UVIT = ("UViT", "UViT (text-conditional variant)")
NETWORKS = networks()
LARGE = ("edm2/unet_default_mult",)


def read(path: Path, **options: Any) -> checkpoints.Checkpoint:
    with File(path) as source:
        return checkpoints.read(source, path.name, **options)


def tensors(path: Path) -> dict[str, Tensor]:
    with File(path) as source:
        return {key: item.read() for key, item in checkpoints.read(source, path.name).state.items()}


def write(case: Case, folder: Path) -> tuple[Path, torch.dtype]:
    """The network of a case as its authors would publish it; the type of the weights in the file."""
    name, config, state = case.meta["name"], case.config, case.state()
    if name in _EDM:
        return files.edm_snapshot(folder / "network-snapshot-200000.pkl", name, config, state), torch.float32
    if name == "Precond":
        return files.edm2_snapshot(folder / "edm2-x-2147483-0.050.pkl", config, state), torch.float16
    path = folder / "net.pt"
    if name == "UNet" or name in _UVIT:
        return files.bare(path, state), torch.float32
    return files.dit_training(path, state, "U-DiT-B" if name == "U_DiT" else "DiT-S/2"), torch.float32


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in NETWORKS])
def test_every_golden_network_from_a_published_file(name: str, tmp_path: Path) -> None:
    case = NETWORKS[name]
    path, dtype = write(case, tmp_path)
    told = [] if path.suffix == ".pkl" else ["--config", json.dumps(case.config), "--as", case.meta["name"]]
    assert main(["import", str(path), "--out", str(tmp_path / "out"), *told]) == 0
    net = folders.load(tmp_path / "out")
    state = net.state_dict()
    family = "scalelong" if case.meta["name"] in _UVIT else "udit" if "DiT" in case.meta["name"] else "edm"
    module = importers.FAMILIES[family]
    for key, value in importers.renamed(module, case.state()).items():
        assert torch.equal(state[key], value.to(dtype).float()), key
    lines = (tmp_path / "out" / "config.gin").read_text().splitlines()[1:]
    node = Composition([], lines).root(type(net).__name__)
    assert {k: v for k, v in node.args.items() if not hasattr(v, "args")} == {
        k: v for k, v in read_imported(tmp_path / "out").network["args"].items() if not isinstance(v, dict)
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    case = NETWORKS["edm/precond_edm"]
    path = files.edm_snapshot(tmp_path / "net.pkl", "EDMPrecond", case.config, case.state(), protocol)
    found = tensors(path)
    assert found.keys() == case.state().keys()
    assert all(torch.equal(value, found[key]) for key, value in case.state().items())
    half = files.edm2_snapshot(tmp_path / "e.pkl", NETWORKS["edm2/precond_small"].config, case.state(), protocol)
    assert all(torch.equal(value.half(), tensors(half)[key]) for key, value in list(case.state().items())[:3])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_containers_views_strides_and_prefixes(legacy: bool, prefix: str, tmp_path: Path) -> None:
    case = NETWORKS["udit/dit_small_p2"]
    flat = torch.cat([torch.zeros(7), *[value.reshape(-1) for value in case.state().values()]])
    at, state = 7, {}
    for key, value in case.state().items():  # one storage for all; every second tensor transposed in memory
        view = flat[at : at + value.numel()].view(value.shape)
        state[prefix + key] = view if value.ndim != 2 or len(state) % 2 else value.t().contiguous().t()
        at += value.numel()
    found = tensors(files.bare(tmp_path / "net.pth", state, legacy))
    assert found.keys() == case.state().keys()
    assert all(torch.equal(found[key], value) for key, value in case.state().items())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_the_same_as_torch_reads(path: Path) -> None:
    """`torch.load(weights_only=True)` with one allowed class agrees, wherever it can read a file at all."""
    if path.suffix == ".pkl" or "training_state" in path.name:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        return
    found = tensors(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        value = torch.load(path, weights_only=True, map_location="cpu")
    value = value.get("ema", value)
    assert found.keys() == value.keys()
    assert all(torch.equal(found[key], value[key]) for key in found)


def test_averages_of_the_training_state(tmp_path: Path) -> None:
    path = CASES / "checkpoints" / "edm2_training_state.pt"
    live = read(path)
    assert (live.kind, live.nimg) == ("live", 4096)
    half = read(path, std=0.05)
    assert (half.kind, half.std) == ("ema", 0.05)
    with File(path) as source:
        first = checkpoints.read(source, path.name).state["unet.out_conv.weight"].read()
        second = checkpoints.read(source, path.name, 0.1).state["unet.out_conv.weight"].read()
    assert torch.equal(second, first / 4)
    with pytest.raises(Exception, match=r"has no average of width 0\.07; it has 0\.05, 0\.1"):
        read(path, std=0.07)


def test_the_name_tells_time_and_width_of_edm2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = CASES / "checkpoints" / "edm2_latent_cond-2147483-0.050.pkl"
    assert (read(sample).nimg, read(sample).std) == (2**31, 0.05)
    other = tmp_path / "renamed.pkl"
    other.write_bytes(sample.read_bytes())
    assert main(["import", str(other), "--out", str(tmp_path / "a")]) == 0
    assert "this one's name does not tell" in capsys.readouterr().err
    assert read_imported(tmp_path / "a").std is None
    told = ["--as", "edm2-img512-xs-0134217-0.100.pkl"]
    assert main(["import", str(other), "--out", str(tmp_path / "b"), *told]) == 0
    b = read_imported(tmp_path / "b")
    assert (b.nimg, b.std, b.source) == (2**27, 0.1, told[1])
    assert main(["import", str(other), "--out", str(tmp_path / "c"), "--kimg", "134217", "--std", "0.1"]) == 0
    assert (read_imported(tmp_path / "c").nimg, read_imported(tmp_path / "c").std) == (2**27, 0.1)


def test_importing_twice_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = CASES / "checkpoints" / "edm_cond_edm_ddpmpp.pkl"
    for name in ("a", "b"):
        assert main(["import", str(sample), "--out", str(tmp_path / name)]) == 0
    for part in ("weights.safetensors", "config.gin", "provenance.json"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_bytes())
    assert provenance["source"] == sample.name and provenance["bytes"] == sample.stat().st_size
    assert len(provenance["keys"]) == len(safetensors.torch.load_file(tmp_path / "a" / "weights.safetensors"))
    capsys.readouterr()
    assert main(["import", str(sample), "--out", str(tmp_path / "a")]) == 0
    assert "was imported before" in capsys.readouterr().out
    other = CASES / "checkpoints" / "edm_baseline_uncond_vp.pkl"
    assert main(["import", str(other), "--out", str(tmp_path / "a")]) == 2
    assert "another file; choose another --out" in capsys.readouterr().err


def test_wrong_digest_is_refused_before_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = CASES / "checkpoints" / "dit_state_dict.pt"
    assert main(["import", str(sample), "--out", str(tmp_path / "a"), "--sha256", "0" * 64]) == 2
    assert "nothing of it was read" in capsys.readouterr().err
    assert main(["import", str(sample), "--out", str(tmp_path / "a"), "--sha256", "12"]) == 2
    assert "64 hex digits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = NETWORKS["edm/precond_edm"]
    state = case.state()
    keys = list(state)

    def refused(changed: dict[str, Tensor], config: dict[str, Any] | None = None) -> str:
        path = files.edm_snapshot(tmp_path / "net.pkl", "EDMPrecond", config or case.config, changed)
        assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
        assert [p.name for p in tmp_path.iterdir()] == ["net.pkl"]
        return capsys.readouterr().err

    assert f"the checkpoint lacks '{keys[0]}'" in refused({key: state[key] for key in keys[1:]})
    assert "the checkpoint has 'model.extra'" in refused({**state, "model.extra": torch.zeros(1)})
    wrong = {**state, keys[3]: torch.zeros(5)}
    assert f"'{keys[3]}' is (5,) in the checkpoint" in refused(wrong)
    filters = [key for key in keys if key.endswith("resample_filter")]
    assert f"'{filters[0]}' of the checkpoint is not what" in refused({**state, filters[0]: state[filters[0]] * 1.01})
    bad = state[keys[0]].clone()
    bad.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert (
        f"3 of {sum(v.numel() for v in state.values())} weights are NaN or infinite, the first in {keys[0]}"
        in refused({**state, keys[0]: bad})
    )
    assert "torch.int64 where weights are expected" in refused({**state, keys[0]: torch.zeros_like(bad).long()})
    for argument, value, message in (
        ("model_channels", 10**9, "'?model_channels'? is 1000000000"),
        ("num_blocks", 10**5, "ask for .* blocks"),
        ("model_channels", "nan", "expected an integer, not 'nan'"),
        ("model_channels", 1.5, "expected an integer, not 1.5"),
        ("resample_filter", [1] * 10**4, "is a list of 10000"),
        ("model_channels", -4, ""),
        ("novelty", 3, "has no argument 'novelty'"),
        ("model_type", "os.system", "unknown model_type 'os.system'"),
    ):
        assert re.search(message, refused(state, {**case.config, argument: value})), argument


def test_files_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {
        "step": 5,
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"last_epoch": 3, "base_lrs": [1e-4]},
        "words": {"a": "b"},
        "adm": {"time_embed.0.weight": torch.zeros(4, 4), "input_blocks.0.0.weight": torch.zeros(2)},
        "unknown": {"fc.weight": torch.zeros(2)},
    }
    expected = ("int", "optimiser", "optimiser or learning rate", "no state dict", "baseline-imagenet", "fc.weight")
    for (name, value), word in zip(contents.items(), expected, strict=True):
        torch.save(value, tmp_path / f"{name}.pth")
        assert main(["import", str(tmp_path / f"{name}.pth"), "--out", str(tmp_path / "out")]) == 2
        assert word in capsys.readouterr().err, name


def test_arguments_that_do_not_show_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = CASES / "checkpoints" / "udit_train_checkpoint.pt"
    assert main(["import", str(sample), "--out", str(tmp_path / "out")]) == 2
    assert "does not tell down_factor, down_shortcut, input_size, posemb_type" in capsys.readouterr().err
    assert main(["import", str(sample), "--out", str(tmp_path / "out"), "--as", "U-DiT-S"]) == 2
    assert "the checkpoint lacks 'encoder_level_1.1." in capsys.readouterr().err
    assert main(["import", str(sample), "--out", str(tmp_path / "out"), "--config", "{"]) == 2
    assert "--config must be JSON" in capsys.readouterr().err


def test_build_takes_the_tensors_of_a_training_checkpoint() -> None:
    case = NETWORKS["udit/dit_small_p2"]
    net = importers.build("udit", "DiT", case.config, {"model": {}, "ema": case.state()})  # type: ignore[dict-item]
    assert not net.training


def test_numbers_of_numpy_in_arguments(tmp_path: Path) -> None:
    case = NETWORKS["edm/precond_edm"]
    config = {**case.config, "sigma_data": np.float64(0.5)}
    found = read(files.edm_snapshot(tmp_path / "n.pkl", "EDMPrecond", config, case.state()))
    assert found.config["sigma_data"] == 0.5


def test_nothing_is_read_but_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser's numbers and the live weights of a training checkpoint stay on the disk."""
    sample = CASES / "checkpoints" / "dit_train_checkpoint.pt"
    with File(sample) as source:
        state = checkpoints.read(source, sample.name).state
        taken = sum(item.storage.count * 4 for item in state.values())
    assert taken < sample.stat().st_size / 2


@pytest.mark.parametrize("file", [one for one in published_files() if one.family == "scalelong" and one.cells])
def test_a_published_uvit_is_the_network_of_its_cell(file: PublishedFile) -> None:
    for name in file.cells:
        node = resolve(find_cell(name)).trajectory.args["denoiser"].args["model"]
        with torch.device("meta"):
            net = build(node)
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        family, told, config, unknown = recognise(shapes, file.file)
        described = importers.FAMILIES[family].describe(told, config).node
        assert not unknown and first_difference(plain(node), plain(described)) == ""


def plain(value: Any) -> Any:
    """A tree as class and arguments."""
    if hasattr(value, "args"):
        return {"class": value.name, "args": {key: plain(item) for key, item in value.args.items()}}
    return value

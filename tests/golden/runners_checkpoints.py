"""Golden cases of kind `checkpoint`: a published file beside the case, imported by the command, loaded and run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from harness import Case, Runner
from torch import Tensor, nn

from repro.cli import main
from repro.importers import folders


def imported(case: Case) -> nn.Module:
    """The network of the case's file, through `repro import`, with every weight compared."""
    source = case.path.with_name(case.meta["file"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "imported"
        told = ["--config", json.dumps(_untold(case.config))] if _needs_config(case) else []
        assert main(["import", str(source), "--out", str(out), *told]) == 0
        stored = safetensors.torch.load_file(out / "weights.safetensors")
        net = folders.load(out)
    dtype = getattr(torch, case.meta["weights_dtype"])
    expected = {key: value.to(dtype).to(torch.float32) for key, value in case.state().items()}
    assert stored.keys() == expected.keys()
    wrong = [key for key, value in expected.items() if not torch.equal(stored[key], value)]
    assert not wrong, f"other weights than those of the file: {wrong[:3]}"
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    return net


def _needs_config(case: Case) -> bool:
    """State dicts come without arguments; objects carry theirs."""
    return not case.meta["file"].endswith(".pkl") and case.meta["name"] != "EDMPrecond"


def _untold(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments that do not show in names and shapes."""
    hidden = ("num_heads", "channels_per_head", "down_factor", "down_shortcut", "input_size", "posemb_type", "dropout")
    return {key: value for key, value in config.items() if key in hidden}


@torch.no_grad()
def run_denoiser(case: Case) -> None:
    case.check("denoised", imported(case)(case.input("x"), case.input("sigma"), case.optional("class_labels")))


@torch.no_grad()
def run_transformer(case: Case) -> None:
    case.check("out", imported(case)(case.input("x"), case.input("t"), case.input("y")))


@torch.no_grad()
def run_uvit(case: Case) -> None:
    labels: list[Tensor] = [value] if (value := case.optional("y")) is not None else []
    case.check("eps", imported(case)(case.input("x"), case.input("timesteps"), *labels))


RUNNERS: dict[tuple[str, str], Runner] = {
    **{
        ("checkpoint", name): run_denoiser
        for name in ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", "Precond")
    },
    ("checkpoint", "DiT"): run_transformer,
    ("checkpoint", "U_DiT"): run_transformer,
    ("checkpoint", "UViT"): run_uvit,
}

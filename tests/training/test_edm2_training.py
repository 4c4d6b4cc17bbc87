"""EDM2's parts in the real loop: forced weights as views of one vector, resumption, averages from its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import after, data_dir

from repro.data.sources import Digits
from repro.data.stream import Dataset
from repro.diffusion.edm2 import EDM2Precond, UncertaintyLoss
from repro.experiment import Execution, Trajectory
from repro.models.edm2 import EDM2UNet
from repro.models.edm2_layers import MPConv
from repro.training import snapshots
from repro.training.ema import PowerEMA
from repro.training.loop import Interrupted, Tracked, Trainer
from repro.training.optimizers import Adam
from repro.training.posthoc import PostHocEMA
from repro.training.schedules import InverseSqrtDecay

BATCH = 8


def trainer(folder: Path, total: int, times: list[int] | None = None, stop: int = 10**9) -> Trainer:
    torch.manual_seed(0)
    net = EDM2UNet(
        8, 1, 10, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], channels_per_head=8,
        dropout=0.1,
    )  # fmt: skip
    trajectory = Trajectory(
        data=Dataset(Digits(), 8, 1, 10),
        denoiser=EDM2Precond(net),
        loss=UncertaintyLoss(),
        lr=InverseSqrtDecay(0.01, 10 * BATCH, 2 * BATCH),
        batch=BATCH,
        optimizer=Adam((0.9, 0.99)),
    )
    profiles = {profile.name: profile for profile in (PowerEMA(0.05), PowerEMA(0.1), PowerEMA(0.075))}
    folder.mkdir(parents=True, exist_ok=True)
    tracked = Tracked(profiles, times or [total])
    stream = trajectory.data.open(data_dir(), 0)
    return Trainer(trajectory, "t", stream, folder, tracked, Execution(1, "cpu"), stop=after(stop))


def test_weights_are_off_the_sphere_after_a_step_and_on_it_in_the_next_pass(tmp_path: Path) -> None:
    """Specification, section 1, fact (i): what the EMA sees is not normalised."""
    made = trainer(tmp_path, 4 * BATCH)
    made.run()
    layer = next(module for module in made.net.modules() if isinstance(module, MPConv) and module.kernel == 3)
    assert layer.weight.untyped_storage().data_ptr() == made.weights.vector.untyped_storage().data_ptr()
    rms = layer.weight.detach().flatten(1).square().mean(1).sqrt()
    assert float((rms - 1).abs().max()) > 1e-3
    made.step()  # normalises, then moves by at most the rate in each weight
    rate = made.optimizer.param_groups[0]["lr"]
    moved = layer.weight.detach().flatten(1).square().mean(1).sqrt()
    assert float((moved - 1).abs().max()) < 3 * rate


def test_a_run_cut_in_two_is_the_same_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 8 * BATCH)
    whole.run()
    with pytest.raises(Interrupted):
        trainer(tmp_path / "cut", 8 * BATCH, stop=3).run()
    resumed = trainer(tmp_path / "cut", 8 * BATCH)
    assert resumed.nimg == 3 * BATCH
    resumed.run()
    assert torch.equal(resumed.weights.vector, whole.weights.vector)
    for name, average in whole.averages.items():
        assert torch.equal(resumed.averages[name], average)


def test_average_reconstructed_from_the_loops_files(tmp_path: Path) -> None:
    asked, total = PostHocEMA(0.075, interval_nimg=2 * BATCH), 64 * BATCH
    made = trainer(tmp_path, total, asked.times(total))
    made.run()
    meta = asked.load(tmp_path, "t", total, made.net)
    assert meta["nimg"] == str(total)
    found = torch.cat([p.detach().reshape(-1) for p in made.net.parameters()])
    snapshots.load(snapshots.path(tmp_path, total, "std0.075"), "t", made.net)
    direct = torch.cat([p.detach().reshape(-1) for p in made.net.parameters()])
    # The nearest average that was tracked differs by 1; a rate of 0.01 / 4 moves all of them little.
    tracked = min(float((made.averages[name] - direct).norm()) for name in ("std0.050", "std0.100"))
    assert float((found - direct).norm()) < 0.02 * tracked

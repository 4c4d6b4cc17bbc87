"""Averages reconstructed after training: against directly tracked ones, and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.training import ema, posthoc, snapshots
from repro.training.ema import PowerEMA
from repro.training.posthoc import PostHocEMA
from repro.training.power_profile import gamma_from_std, inner_products, profile_errors

STEPS, EVERY, BATCH = 1024, 32, 64


def tracked(theta: Tensor, std: float) -> Tensor:
    """The average after every step, (steps, parameters), of weights after the steps."""
    profile, average, found = PowerEMA(std), theta[0].clone(), []
    for step in range(1, len(theta)):
        ema.update(average, theta[step], profile.beta((step - 1) * BATCH, BATCH))
        found.append(average.clone())
    return torch.stack(found)


@settings(max_examples=20, deadline=None)
@given(std=st.floats(0.02, 0.22), seed=st.integers(0, 1000), drift=st.floats(0, 1))
def test_reconstruction_is_what_tracking_gives(std: float, seed: int, drift: float) -> None:
    """Off by no more than the error of the profile times the spread of the weights (Cauchy and Schwarz).

    What steps make of the integral is allowed for by a share of the spread: the time of two steps over the width.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(STEPS + 1, 8, generator=generator, dtype=torch.float64)
    theta = drift * noise.cumsum(0) / STEPS**0.5 + (1 - drift) * noise
    taken = {s: tracked(theta, s)[EVERY - 1 :: EVERY] for s in (0.05, 0.1)}
    count = STEPS // EVERY
    times = np.repeat(np.arange(1, count + 1) * float(EVERY * BATCH), 2)
    stds = np.tile([0.05, 0.1], count)
    end = np.array([times[-1]])
    matrix = posthoc.coefficients(times, stds, [std], limit=1.0)
    values = [{"theta": taken[s][i // 2]} for i, s in enumerate(stds)]
    found = posthoc.weighted_sums(values, matrix)[0]["theta"]
    error = profile_errors(times, stds, end, np.array([std]))[0]
    gamma = np.array([gamma_from_std(std)])
    length = np.sqrt(inner_products(end, gamma, end, gamma)[0] * times[-1])
    spread = float((theta - theta.mean(0)).square().mean(0).sqrt().max())
    allowed = spread * (error * length + 2 / (std * STEPS))
    assert float((found - tracked(theta, std)[-1]).abs().max()) <= allowed


def test_golden_accuracy_at_the_published_number_of_snapshots() -> None:
    """64 snapshots of two averages: 0.03 to 0.2 to within a hundredth of the weights' spread."""
    theta = torch.randn(STEPS + 1, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64).cumsum(0)
    theta /= theta.std()
    times = np.repeat(np.arange(1, 65) * 16.0 * BATCH, 2)
    stds, targets = np.tile([0.05, 0.1], 64), [0.03, 0.075, 0.13, 0.2]
    taken = {s: tracked(theta, s)[15::16] for s in (0.05, 0.1)}
    matrix = posthoc.coefficients(times, stds, targets)
    sums = posthoc.weighted_sums(({"theta": taken[s][i // 2]} for i, s in enumerate(stds)), matrix)
    for std, total in zip(targets, sums, strict=True):
        torch.testing.assert_close(total["theta"], tracked(theta, std)[-1], atol=0.01, rtol=0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.fixed: Tensor
        self.register_buffer("fixed", torch.zeros(2))


def write(folder: Path, interval: int = 100, count: int = 40, trajectory: str = "mine") -> PostHocEMA:
    """Snapshots of a weight that is the time in images, and a buffer that never changes."""
    asked = PostHocEMA(0.075, interval_nimg=interval)
    averages = {profile.name: torch.zeros(3, dtype=torch.float64) for profile in asked.profiles()}
    for nimg in range(10, interval * count + 1, 10):
        for profile in asked.profiles():
            ema.update(averages[profile.name], torch.full([3], float(nimg)).double(), profile.beta(nimg - 10, 10))
            if nimg % interval == 0:
                state = {"weight": averages[profile.name].float(), "fixed": torch.tensor([0.1, 0.7])}
                snapshots.save(folder, nimg, profile.name, state, {"trajectory": trajectory, "nimg": nimg})
    return asked


def test_from_files(tmp_path: Path) -> None:
    asked, net = write(tmp_path), Net()
    meta = asked.load(tmp_path, "mine", 4000, net)
    assert meta["nimg"] == "4000"
    assert torch.equal(net.fixed, torch.tensor([0.1, 0.7])), "buffers are copied, never averaged"
    profile, direct = PowerEMA(0.075), torch.zeros(3).double()
    for nimg in range(10, 4001, 10):
        ema.update(direct, torch.full([3], float(nimg)).double(), profile.beta(nimg - 10, 10))
    torch.testing.assert_close(net.weight.detach().double(), direct, rtol=1e-4, atol=0)


def test_an_earlier_milestone_uses_no_later_snapshot(tmp_path: Path) -> None:
    asked, net = write(tmp_path), Net()
    for name in ("std0.050", "std0.100"):
        snapshots.path(tmp_path, 4000, name).unlink()
    asked.load(tmp_path, "mine", 3900, net)
    assert float(net.weight.detach()[0]) < 3900


def test_missing_snapshot_is_named(tmp_path: Path) -> None:
    asked = write(tmp_path)
    gone = snapshots.path(tmp_path, 1700, "std0.100")
    gone.unlink()
    with pytest.raises(MissingPrerequisite, match=gone.name):
        asked.load(tmp_path, "mine", 4000, Net())


def test_snapshot_of_another_trajectory(tmp_path: Path) -> None:
    asked = write(tmp_path, trajectory="another")
    with pytest.raises(CorruptData, match="another trajectory"):
        asked.load(tmp_path, "mine", 4000, Net())


def test_truncated_snapshot(tmp_path: Path) -> None:
    asked = write(tmp_path)
    file = snapshots.path(tmp_path, 1700, "std0.100")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CorruptData, match="1.700-std0.100"):
        asked.load(tmp_path, "mine", 4000, Net())


def test_snapshots_of_another_network(tmp_path: Path) -> None:
    asked = write(tmp_path)
    with pytest.raises(CorruptData, match="do not fit the network"):
        asked.load(tmp_path, "mine", 4000, nn.Linear(2, 2))


@pytest.mark.parametrize("std", [0.01, 0.28])
def test_length_that_the_snapshots_do_not_determine(tmp_path: Path, std: float) -> None:
    write(tmp_path)
    asked = PostHocEMA(std, interval_nimg=100)
    with pytest.raises(UsageError, match=r"possible: std 0\.0\d\d to 0\.2\d\d"):
        asked.load(tmp_path, "mine", 4000, Net())


def test_two_names_of_one_snapshot_count_once(tmp_path: Path) -> None:
    asked = write(tmp_path)
    found = [
        posthoc.open_snapshot(snapshots.path(tmp_path, time, profile.name), "mine", profile.std)
        for time in asked.times(4000)
        for profile in asked.profiles()
    ]
    once, twice = posthoc.reconstruct(found, [0.075])[0], posthoc.reconstruct([*found, found[3]], [0.075])[0]
    assert torch.equal(once["weight"], twice["weight"])


def test_several_lengths_at_once(tmp_path: Path) -> None:
    asked = write(tmp_path)
    found = [
        posthoc.open_snapshot(snapshots.path(tmp_path, time, profile.name), "mine", profile.std)
        for time in asked.times(4000)
        for profile in asked.profiles()
    ]
    many = posthoc.reconstruct(found, [0.05, 0.075, 0.1])
    torch.testing.assert_close(many[0]["weight"], found[-2].read()["weight"], rtol=1e-5, atol=0)
    torch.testing.assert_close(many[2]["weight"], found[-1].read()["weight"], rtol=1e-5, atol=0)
    torch.testing.assert_close(many[1]["weight"], posthoc.reconstruct(found, [0.075])[0]["weight"])


@pytest.mark.parametrize("changes", [{"std": 0.3}, {"tracked": [0.05, 0.0]}, {"interval_nimg": 0}])
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PostHocEMA(**changes)


def test_times_of_snapshots() -> None:
    assert PostHocEMA(interval_nimg=40).times(100) == [40, 80, 100]
    assert PostHocEMA(interval_nimg=50).times(100) == [50, 100]
    assert len(PostHocEMA().times(2**31)) == 256


def test_names_tell_settings_apart() -> None:
    made = [PostHocEMA(), PostHocEMA(0.09), PostHocEMA(tracked=[0.05]), PostHocEMA(interval_nimg=7)]
    assert len({asked.name for asked in made}) == 4


@pytest.mark.parametrize(
    "kimg, mi", [(2147483, 2048), (1879048, 1792), (1342177, 1280), (939524, 896), (1073741, 1024), (671088, 640),
                 (268435, 256), (134217, 128)],
)  # fmt: skip
def test_images_of_published_file_names(kimg: int, mi: int) -> None:
    assert posthoc.published_nimg(kimg) == mi * 2**20

"""Several processes train what one process trains: gloo, on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, command, environment, finish
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from repro.errors import UsageError
from repro.training.distributed import World, from_environment

PLAIN = (*TINY, "SongUNet.dropout = 0.0")


@given(batch=st.integers(1, 5000), size=st.integers(1, 64))
def test_shares_cover_the_batch_in_order(batch: int, size: int) -> None:
    if batch < size:
        with pytest.raises(UsageError, match="cannot be shared"):
            World(0, size).share(batch)
        return
    shares = [World(rank, size).share(batch) for rank in range(size)]
    assert [start for start, _ in shares] == [sum(count for _, count in shares[:rank]) for rank in range(size)]
    counts = [count for _, count in shares]
    assert sum(counts) == batch and max(counts) - min(counts) <= 1 and min(counts) >= 1


def test_the_environment_of_torchrun_and_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment() == World(0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        from_environment()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert from_environment() == World(5, 8, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert from_environment() == World(1, 2, 1)  # torchrun inside a SLURM job: torchrun's own
    for rank in ("2", "x"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UsageError, match="WORLD_SIZE"):
            from_environment()


def test_alone_nothing_is_asked_of_others() -> None:
    world, value = World(), torch.ones(2)
    assert world.first and world.sum_(value) is value and world.any(True) and not world.any(False)
    assert world.from_first({"a": 1}) == {"a": 1}
    world.together(3)
    world.wait()


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def ranks(words: list[str], cwd: Path, size: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """`repro` as `size` processes of one world, as torchrun would start them; all must end within minutes."""
    port = free_port()
    processes = []
    for rank in range(size):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "repro", *words],
                cwd=cwd,
                env={**environment(), **world, "MASTER_ADDR": "127.0.0.1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(words, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def weights(runs: Path) -> dict[str, torch.Tensor]:
    return load_file(next(runs.glob("*/ema/*.safetensors")))


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    code, _, err = finish(command("run", one, PLAIN), tmp_path)
    assert code == 0, err
    first, second = ranks(command("run", two, PLAIN), tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "digits FD" in first.stdout and second.stdout == ""
    alone, together = weights(one), weights(two)
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        # A key's bias has no true gradient (softmax does not see it): Adam moves it by the rounding of others.
        kept = torch.arange(len(value)) % 3 != 1 if key.endswith("qkv.bias") else slice(None)
        assert torch.allclose(value[kept], together[key][kept], rtol=1e-3, atol=1e-5), key
    logs = [json.loads(line) for line in next(two.glob("*/log.jsonl")).read_text().splitlines()]
    assert [line["nimg"] for line in logs if "nimg" in line][-1] == 256
    solo, record = (json.loads(next(runs.glob("*/eval/*/*/*/record.json")).read_text()) for runs in (one, two))
    assert record["world_size"] == 2 and record["num_samples"] == 20
    assert record["evaluation_hash"] == solo["evaluation_hash"]
    again, _ = ranks(command("run", two, PLAIN), tmp_path)
    assert again.returncode == 0 and "nothing to compute" in again.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    """Whose share holds the image does not matter: no process waits for another that has given up."""
    words = command("run", tmp_path / "runs", (*PLAIN, "EDMLoss.P_mean = 60.0", "EDMLoss.P_std = 40.0"))
    for ended in ranks(words, tmp_path):
        assert ended.returncode == 2 and "the loss is" in ended.stderr, ended.stderr


@pytest.mark.slow
def test_a_batch_smaller_than_the_world_is_refused_by_all(tmp_path: Path) -> None:
    words = command("run", tmp_path / "runs", (*PLAIN, "Scale.batch = [(1, 1), (4096, 2)]"))
    for ended in ranks(words, tmp_path, size=3):
        assert ended.returncode == 2 and "cannot be shared by 3 processes" in ended.stderr, ended.stderr

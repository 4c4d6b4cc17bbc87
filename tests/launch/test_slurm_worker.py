"""What runs first on a compute node."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitit.core.utils import temporary_save_path

from repro.launch.slurm_worker import remove_unfinished_result


def test_a_result_that_a_lost_node_left_half_written_does_not_stop_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path)}
    told |= {"SLURM_JOB_ID": "12", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    result = tmp_path / "12_1_result.pkl"
    others = tmp_path / "12_0_result.pkl.save_tmp"
    for left in (result.with_suffix(".pkl.save_tmp"), others):
        left.touch()
    with pytest.raises(AssertionError), temporary_save_path(result):
        pass
    for _ in range(2):
        remove_unfinished_result()
    with temporary_save_path(result) as path:
        path.write_bytes(b"done")
    assert result.read_bytes() == b"done" and others.exists()

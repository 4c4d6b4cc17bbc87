"""What a plan costs, counted on the meta device: every kind of network and sampler, and a sum by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.launch.cluster import Cluster
from repro.launch.estimate import cost, estimate, network, nfe, work
from repro.launch.plan import Plan, make_plan
from repro.tables import find_cell, load_table, table_names

CELL = "edm/table2/f/cifar10-cond-vp"


def plan(tmp_path: Path, *names: str, seeds: int = 1) -> Plan:
    return make_plan([find_cell(name) for name in names], "full", (), range(seeds), [tmp_path])


@pytest.mark.parametrize("table", table_names())
def test_the_work_of_every_column_of_every_table_is_counted(table: str, tmp_path: Path) -> None:
    first = {cell.column: cell.name for cell in reversed(load_table(table).computable)}
    jobs = plan(tmp_path, *first.values()).jobs
    counted = [work(job) for job in jobs]
    assert all(w.train_flops > 1e15 and w.disk_bytes > 1e7 for w in counted)
    assert sum(w.evaluation_flops for w in counted) > 1e12


@pytest.mark.parametrize("binding", ["VPDenoiser.use_bf16 = True", "VPDenoiser.use_fp16 = True"])
def test_precision_changes_no_count(binding: str) -> None:
    from repro.cells import resolve

    cell = find_cell("scalelong/table1/ls/cifar10-uvit-s2")
    plain, other = (resolve(cell, "full", bindings).trajectory.args["denoiser"] for bindings in ((), (binding,)))
    assert network(plain) == network(other)


def test_a_sum_by_hand(tmp_path: Path) -> None:
    made = plan(tmp_path, CELL, seeds=2)
    resolved = made.jobs[0].wanted[0].resolve()
    forward, parameters = network(resolved.trajectory.args["denoiser"])
    assert parameters == 55_735_299 and nfe(resolved) == 35
    milestones = resolved.selection().milestones()
    one = work(made.jobs[0])
    assert one.train_flops == 3 * forward * milestones[-1]
    assert one.evaluation_flops == forward * 35 * 50_000 * 3 * len(milestones)
    assert one.disk_bytes == 4 * parameters * (len(milestones) + 2 * 4)
    found = estimate(made, cluster=Cluster(flops=1e13, gpus_per_node=8, array_parallelism=2, price=3.0))
    hours = 2 * (one.train_flops + one.evaluation_flops) / 1e13 / 3600
    assert (found.runs, found.evaluations) == (2, 6 * len(milestones))
    assert found.gpu_hours == pytest.approx(hours) and found.money == pytest.approx(3 * hours)
    assert found.hours == pytest.approx(hours / 2 / 8) and "2 training runs" in found.text


def test_a_guide_is_called_too_and_guidance_without_one_is_in_the_nfe(tmp_path: Path) -> None:
    def counted(name: str) -> tuple[float, float]:
        """(FLOPs of evaluation, of one forward pass of the network for all its images and calls)"""
        job = next(job for job in plan(tmp_path, name).jobs if job.tasks)
        resolved = job.tasks[0].request.resolve()
        calls = nfe(resolved) * resolved.evaluation.args["num_samples"] * len(job.tasks)
        return work(job).evaluation_flops, network(resolved.trajectory.args["denoiser"])[0] * calls

    alone, forward = counted("edm2/table2/s/imagenet512")
    guided, same = counted("edm2/table2/s-cfg/imagenet512")
    guide, _ = counted("edm2/table2/xs/imagenet512")  # as large as the guide, but for its labels
    assert alone == forward == same and guided - forward == pytest.approx(guide, rel=0.01)
    twice, same = counted("udit/table4/udit-b/imagenet256-400k-cfg")
    once, _ = counted("udit/table2/udit-b/imagenet256-400k")
    assert twice == same == 2 * once


def test_nothing_costs_nothing() -> None:
    assert cost([], Cluster()).hours == 0

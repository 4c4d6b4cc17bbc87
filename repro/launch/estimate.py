"""What a plan costs, before it is started: model FLOPs from the real networks, counted on the meta device.

The facts that need torch (FLOPs, parameters, NFE, what an EMA tracks) are remembered between commands, keyed by the
canonical form of what they are of.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from repro import cache
from repro.cells import Leg, Resolved
from repro.config import Node, build, build_on_meta
from repro.identity import digest
from repro.launch.cluster import Cluster
from repro.launch.folders import trained_nimg
from repro.launch.plan import Folders, Job, Plan

ASSUMED_FLOPS = 30e12
"""Sustained FLOP/s of one GPU: about a quarter of an A100's peak in TF32, the usual share for these networks."""
ASSUMED = Cluster(gpus_per_node=1, array_parallelism=1, flops=ASSUMED_FLOPS)
"""One GPU: what is assumed where no profile says better."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is left of one job: FLOPs of training and of its missing evaluations, and bytes of disk."""

    train_flops: float
    evaluation_flops: float
    disk_bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """runs: training runs; gpu_hours: on GPUs of `flops` FLOP/s; hours: from the first start to the last end, without
    queueing; disk_gb: snapshots and checkpoints; money: in the profile's currency."""

    runs: int
    evaluations: int
    gpu_hours: float
    hours: float
    disk_gb: float
    money: float
    flops: float

    @property
    def text(self) -> str:
        return (
            f"{self.runs} training runs, about {self.gpu_hours / 24:.1f} GPU-days at "
            f"{self.flops / 1e12:.4g} TFLOP/s sustained, {self.disk_gb:.0f} GB of disk"
        )


def estimate(plan: Plan, folders: Folders | None = None, cluster: Cluster = ASSUMED) -> Cost:
    """Cost of all that a plan has to compute; what runs in `folders` have trained so far is taken off."""
    return cost([(job, work(job, folders)) for job in plan.jobs], cluster)


def cost(jobs: Sequence[tuple[Job, Work]], cluster: Cluster) -> Cost:
    """Cost of some jobs, with the array parallelism and the GPUs of a profile."""
    train, evaluation = sum(w.train_flops for _, w in jobs), sum(w.evaluation_flops for _, w in jobs)
    one_train = cluster.flops * cluster.gpus(cluster.nodes)
    one_evaluation = cluster.flops * cluster.gpus(cluster.evaluation_nodes)
    longest = max(
        (
            w.train_flops / one_train
            + w.evaluation_flops / one_evaluation / max(1, min(cluster.evaluation_jobs, len(job.tasks)))
            for job, w in jobs
        ),
        default=0.0,
    )
    together = (train / one_train + evaluation / one_evaluation) / cluster.array_parallelism
    gpu_hours = (train + evaluation) / cluster.flops / 3600
    return Cost(
        runs=sum(w.train_flops > 0 for _, w in jobs),
        evaluations=sum(len(job.tasks) for job, _ in jobs),
        gpu_hours=gpu_hours,
        hours=max(longest, together) / 3600,
        disk_gb=sum(w.disk_bytes for _, w in jobs) / 1e9,
        money=gpu_hours * cluster.price,
        flops=cluster.flops,
    )


def work(job: Job, folders: Folders | None = None) -> Work:
    """What is left to do of a job (backward = twice the forward pass)."""
    legs = job.legs()
    forward, parameters = network(legs[0].trajectory.args["denoiser"])
    tracked = [track(leg) for leg in legs]
    times = {time for one in tracked for time in one["times"]}
    profiles = {name for one in tracked for name in one["profiles"]}
    trained = not job.wanted[0].imported
    done = trained_nimg(folders.runs / legs[0].run) if folders else 0
    sampled = 0.0
    alike = Counter((task.request, task.preview) for task in job.tasks)
    for (request, preview), count in alike.items():
        resolved = request.resolve()
        resolved = (resolved.preview() if preview else None) or resolved
        calls = count * nfe(resolved) * resolved.evaluation.args["num_samples"]
        guide = resolved.evaluation.args["guide"]
        guiding = network(guide.args["trajectory"].args["denoiser"])[0] if guide is not None else 0.0
        sampled += calls * (forward + guiding)
    return Work(
        train_flops=3 * forward * max(0, max(times) - done) * trained,
        evaluation_flops=sampled,
        disk_bytes=4 * parameters * (len(times) * len(profiles) + 2 * (3 + len(profiles))) * trained,
    )


def network(denoiser: Node) -> tuple[float, int]:
    """(FLOPs of one image's forward pass, parameters) of a network."""
    flops, parameters = cache.remember("network", digest(_form(denoiser)), lambda: _count(denoiser))
    return float(flops), int(parameters)


def nfe(resolved: Resolved) -> int:
    """Denoiser calls an image of a cell's sampler, of an adaptive one roughly; a guided step has two, and a guide's own
    calls do not count."""
    sampler = resolved.evaluation.args["sampler"]

    def count() -> int:
        from repro.diffusion.samplers import count_nfe

        return count_nfe(build(sampler))

    calls: int = cache.remember("nfe", digest(_form(sampler)), count)
    return calls


def track(leg: Leg) -> dict[str, Any]:
    """{"profiles": names of the averages that training keeps for a cell, "times": images at which it writes them}."""

    def find() -> dict[str, Any]:
        ema = build(leg.ema)
        return {
            "profiles": [profile.name for profile in ema.profiles()],
            "times": sorted({time for milestone in leg.milestones for time in ema.times(milestone)}),
        }

    tracked: dict[str, Any] = cache.remember("track", digest([_form(leg.ema), list(leg.milestones)]), find)
    return tracked


def _form(value: Any) -> Any:
    """A tree as JSON: what is built from it follows from this and the sources. Needs no class, and so no torch."""
    if isinstance(value, Node):
        return [value.name, {key: _form(item) for key, item in value.args.items()}]
    if isinstance(value, dict):
        return {str(key): _form(item) for key, item in value.items()}
    return [_form(item) for item in value] if isinstance(value, list | tuple) else value


def _count(denoiser: Node) -> tuple[float, int]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    net = build_on_meta(denoiser)
    with torch.device("meta"), torch.no_grad():
        images = torch.zeros(1, net.img_channels, net.img_resolution, net.img_resolution)
        labels = torch.zeros(1, net.label_dim) if net.label_dim else None
        with FlopCounterMode(display=False) as counter:
            net(images, torch.ones(1), labels)
    return float(counter.get_total_flops()), sum(p.numel() for p in net.parameters())

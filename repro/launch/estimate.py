"""What a plan costs, before it is started: model FLOPs from the real networks, counted on the meta device."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from repro.config import Node, build, canonical
from repro.diffusion.samplers import count_nfe
from repro.identity import digest
from repro.launch.plan import Plan

ASSUMED_FLOPS = 30e12
"""Sustained FLOP/s of one GPU: about a quarter of an A100's peak in TF32, the usual share for these networks."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """runs: training runs; gpu_hours: on one GPU of `ASSUMED_FLOPS`; disk_gb: snapshots, checkpoints and records."""

    runs: int
    gpu_hours: float
    disk_gb: float

    @property
    def text(self) -> str:
        return (
            f"{self.runs} training runs, about {self.gpu_hours / 24:.1f} GPU-days at "
            f"{ASSUMED_FLOPS / 1e12:.0f} TFLOP/s sustained, {self.disk_gb:.0f} GB of disk"
        )


def estimate(plan: Plan) -> Cost:
    """Cost of all that a plan has to compute (backward = twice the forward pass)."""
    flops, disk, runs = 0.0, 0.0, 0
    networks: dict[str, tuple[float, int]] = {}  # equal networks are counted once
    for job in plan.jobs:
        resolved = job.wanted[0].resolve()
        denoiser = resolved.trajectory.args["denoiser"]
        key = digest(canonical(denoiser))
        if key not in networks:
            networks[key] = _network(denoiser)
        forward, parameters = networks[key]
        milestones = sorted({m for request in job.wanted for m in request.resolve().selection().milestones()})
        profiles = {request.resolve().ema().name for request in job.wanted}
        trained = not resolved.imported
        runs += trained
        flops += 3 * forward * milestones[-1] * trained
        for task in job.tasks:
            scored = task.resolve().evaluation.args
            flops += forward * count_nfe(build(scored["sampler"])) * scored["num_samples"]
        disk += 4 * parameters * (len(milestones) * len(profiles) + 2 * (3 + len(profiles))) * trained
    return Cost(runs, flops / ASSUMED_FLOPS / 3600, disk / 1e9)


def _network(denoiser: Node) -> tuple[float, int]:
    """(FLOPs of one image's forward pass, parameters) of a network."""
    with torch.device("meta"), torch.no_grad():
        net = build(denoiser).eval()
        images = torch.zeros(1, net.img_channels, net.img_resolution, net.img_resolution)
        labels = torch.zeros(1, net.label_dim) if net.label_dim else None
        with FlopCounterMode(display=False) as counter:
            net(images, torch.ones(1), labels)
    return float(counter.get_total_flops()), sum(p.numel() for p in net.parameters())

"""Doing a job: train its trajectory to the milestones asked for, evaluate, write records. The same code everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from repro import assets
from repro.cells import Leg, Resolved
from repro.config import build, canonical
from repro.data.prefetch import rank_slices
from repro.data.stream import ImageStream
from repro.diffusion.draws import derive_seed
from repro.errors import UsageError
from repro.experiment import Evaluation, Execution, Trajectory
from repro.files import make_folder, remove_leftovers, write_atomic, write_json
from repro.importers.folders import fill
from repro.launch.claims import Claim, Owner, acquire, how_to_release
from repro.launch.evaluate import Scoring, identity_of
from repro.launch.plan import Folders, Job, Request, Task, has_record, place_of, scored_without_data
from repro.launch.prompts import open_prompts
from repro.pictures import write_grid
from repro.published import BARE, Imported
from repro.results import provenance
from repro.results.records import Metric, Record, record_path, write_record
from repro.sampling import Network
from repro.training import snapshots
from repro.training.compiling import compile_network
from repro.training.distributed import World
from repro.training.loop import Interrupted, Tracked, Trainer

Report = Callable[[dict[str, Any]], None]
Stage = Literal["all", "train", "evaluate"]
CLAIM_SECONDS = 5.0
"""How often a process looks whether its claims still hold."""
TRAINING_SHARE = 0.75
"""Part of a job's progress bar that training takes; sampling and scoring take the rest."""


@dataclasses.dataclass
class Worker:
    """Runs jobs in this process.

    Args:
        folders: where runs, data and weights lie.
        report: called with {"fraction", "phase", ...} as a job goes on.
        stop: asked after every step; True ends the job with `Interrupted` once its state is saved.
        world: the processes that do each job together. The first one claims and writes.
    """

    folders: Folders
    report: Report = lambda event: None
    stop: Callable[[], bool] = lambda: False
    world: World = World()
    _claims: list[Claim] = dataclasses.field(default_factory=list, init=False)
    _looked: float = dataclasses.field(default=0.0, init=False)

    def run(self, job: Job, stage: Stage = "all") -> str | None:
        """Do a job, or one stage of it. None when it is done; else the living owner of what another process works on.

        Of a claimed trajectory nothing is done. Of claimed evaluations the others are done; evaluating needs no claim
        on the trajectory, so that several processes can share its evaluations.
        """
        resolved = job.wanted[0].resolve()
        leg = next((leg for leg in resolved.legs if leg.trajectory_hash == job.trajectory_hash), None)
        if leg is None:
            raise UsageError(
                f"{job.wanted[0].cell}: resolves to {resolved.trajectory_hash[:16]} here, was planned as "
                f"{job.trajectory_hash[:16]}: the configuration or the package changed in between"
            )
        execution = settle(build(resolved.execution), self.world)
        folder = make_folder(self.folders.runs / leg.run)
        if stage == "evaluate":
            return self._work(job, leg, resolved.text, folder, execution, stage)
        with self._claimed(folder) as owner:
            return owner or self._work(job, leg, resolved.text, folder, execution, stage)

    def _work(self, job: Job, leg: Leg, text: str, folder: Path, execution: Execution, stage: Stage) -> str | None:
        pending: list[Task] = self.world.from_first([t for t in job.tasks if not self._done(t)])
        if job.tasks and not pending:
            return None
        imported = bool(job.wanted[0].imported)
        needed = not (imported and scored_without_data(job.wanted[0].resolve()))
        trajectory, stream = self._open(leg, execution, needed)
        if imported:
            self._describe(job.wanted[0], leg, text, folder)
        elif stream is not None and stage != "evaluate":
            self._train(job, leg, text, trajectory, stream, folder, execution)
        busy = None
        for index, task in enumerate(pending if stage != "train" else ()):
            milestone = self.world.from_first(place_of(self.folders.readable, task) if self.world.first else None)
            if milestone is None:
                busy = busy or "another process, which scores the previews that choose"
                continue
            with self._claimed(make_folder(self._record(task, milestone).parent)) as owner:
                if owner is not None:
                    busy = owner
                elif not self.world.from_first(self._done(task)):
                    self._evaluate(task, milestone, trajectory, stream, folder, execution, (index, len(pending)))
        self.world.wait()
        return busy

    @contextlib.contextmanager
    def _claimed(self, folder: Path) -> Iterator[str | None]:
        """Hold the claim on a folder, in the first process for all; yields the owner where another process holds it."""
        claim = acquire(folder) if self.world.first else None
        owner: str | None = self.world.from_first(_say(claim, folder) if isinstance(claim, Owner) else None)
        if not isinstance(claim, Claim):
            yield owner
            return
        with claim:
            self._claims.append(claim)
            try:
                yield None
            finally:
                self._claims.remove(claim)

    def _stop(self) -> bool:
        """Whether to stop. Raises where a claim was taken over: nothing may be written after that."""
        now = time.monotonic()
        if self._claims and now - self._looked > CLAIM_SECONDS:
            self._looked = now
            if not all(claim.held for claim in self._claims):
                raise Interrupted(f"{self._claims[0].file.parent}: another process has taken over")
        return self.stop()

    def _record(self, task: Task, milestone: int) -> Path:
        resolved = task.resolve()
        return record_path(self.folders.runs, resolved.trajectory_hash, resolved.evaluation_hash, milestone, task.range)

    def _done(self, task: Task) -> bool:
        milestone = place_of(self.folders.readable, task)
        return milestone is not None and has_record(self.folders.readable, task.resolve(), milestone, task.range, [])

    def _open(self, leg: Leg, execution: Execution, needed: bool) -> tuple[Trajectory, ImageStream | None]:
        """The built trajectory and its data; None where they are not needed."""
        if execution.threads:
            torch.set_num_threads(execution.threads)
        trajectory = build_trajectory(leg)
        if execution.compile:
            compile_network(trajectory.denoiser.model, execution.device)
        if not needed:
            return trajectory, None
        stream = trajectory.data.open(self.folders.data, trajectory.seed)
        if stream.empty_context is not None:
            trajectory.denoiser.empty_context = stream.empty_context
        world = self.world
        stream.read_ahead(
            execution.workers, rank_slices(trajectory.batch, world.size, world.rank, execution.micro_batch)
        )
        return trajectory, stream

    def _describe(self, request: Request, leg: Leg, text: str, folder: Path) -> None:
        """The manifest of a trajectory that was not trained here."""
        if self.world.first:
            told = request.resolve().config["args"]["trajectory"]
            origin, sources = origin_of(request.published()[0]), assets.sources_sha256()
            manifest = {"trajectory_hash": leg.trajectory_hash, "config": told, "imported": origin}
            write_json(folder / "manifest.json", {**manifest, "sources_sha256": sources})
            write_atomic(folder / "config.gin", text.encode())

    def _train(
        self,
        job: Job,
        leg: Leg,
        text: str,
        trajectory: Trajectory,
        stream: ImageStream,
        folder: Path,
        execution: Execution,
    ) -> None:
        """Train until every wanted snapshot exists; write the manifest first."""
        needs = _needs(job)
        profiles = {profile.name: profile for ema, _ in needs for profile in ema.profiles()}
        milestones = sorted({time for ema, milestone in needs for time in ema.times(milestone)})
        manifest = {
            "trajectory_hash": leg.trajectory_hash,
            "config": canonical(leg.trajectory),
            "data_manifest_sha256": stream.manifest_sha256,
            "sources_sha256": assets.sources_sha256(),
            "execution": dataclasses.asdict(execution),
        }
        if self.world.from_first(has_weights(job, folder)):
            return

        def progress(event: dict[str, Any]) -> None:
            share = TRAINING_SHARE / event["total"]
            self.report({"phase": "train", "fraction": share * event["nimg"], "before": share * begin, **event})

        tracked = Tracked(profiles, milestones)
        trainer = Trainer(
            trajectory, leg.trajectory_hash, stream, folder, tracked, execution, progress, self._stop, self.world
        )
        begin = trainer.nimg
        # The trainer has accepted the folder: only now may its description change.
        manifest["tracks"] = {
            "profiles": {name: profile.settings() for name, profile in trainer.profiles.items()},
            "milestones_nimg": sorted({*milestones, *_kept_milestones(folder)}),
        }
        if self.world.first:
            write_json(folder / "manifest.json", manifest)
            write_atomic(folder / "config.gin", text.encode())
        for note in trainer.notes:
            self.report({"note": f"{job.title} ({leg.run}): {note}"})
        trainer.run()

    def _check_manifest(self, folder: Path, meta: dict[str, str], stream: ImageStream | None) -> None:
        assert stream is not None
        if meta["data_manifest"] != stream.manifest_sha256:
            raise UsageError(
                f"{folder}: was trained on another data manifest ({meta['data_manifest'][:16]}) than that of "
                f"{self.folders.data} ({stream.manifest_sha256[:16]})"
            )

    def _guide(
        self,
        resolved: Resolved,
        evaluation: Evaluation,
        stream: ImageStream | None,
        execution: Execution,
        imported: Sequence[Imported],
    ) -> Network | None:
        """The guiding network with its averaged weights, which are imported or another job has trained before."""
        if evaluation.guide is None:
            return None
        if imported:
            fill_imported(evaluation.guide.trajectory.denoiser, imported[1])
            return evaluation.guide.trajectory.denoiser.to(execution.device).eval()
        leg = resolved.legs[1]
        folder = self.folders.runs / leg.run
        net = evaluation.guide.trajectory.denoiser.to(execution.device).eval()
        meta = evaluation.guide.ema.load(folder, leg.trajectory_hash, evaluation.guide.milestone_nimg, net)
        self._check_manifest(folder, meta, stream)
        return net

    def _decoder(self, trajectory: Trajectory, execution: Execution) -> Callable[[Tensor], Tensor] | None:
        """What makes images of generated latents; None where the network makes images itself."""
        if trajectory.data.source.form == "pixels":
            return None
        from repro.data.decoding import latent_decoder

        return latent_decoder(trajectory.data, self.folders.data, self.folders.weights, execution.device)

    def _evaluate(
        self,
        task: Task,
        milestone: int,
        trajectory: Trajectory,
        stream: ImageStream | None,
        folder: Path,
        execution: Execution,
        position: tuple[int, int],
    ) -> None:
        resolved = task.resolve()
        evaluation = build(resolved.evaluation)
        net = trajectory.denoiser.eval()
        imported = task.request.published()
        if imported:
            fill_imported(net, imported[0])
            meta = {"nimg": str(imported[0].nimg or 0), "data_manifest": stream.manifest_sha256 if stream else ""}
        else:
            meta = evaluation.ema.load(folder, resolved.trajectory_hash, milestone, net)
            self._check_manifest(folder, meta, stream)
        guide = self._guide(resolved, evaluation, stream, execution, imported)
        decode = self._decoder(trajectory, execution)
        prompts = open_prompts(evaluation, trajectory, self.folders.data, stream)
        path = self._record(task, milestone)
        first = task.range * evaluation.num_samples

        def progress(done: int, total: int) -> None:
            part = (position[0] + done / total) / position[1]
            fraction = TRAINING_SHARE + (1 - TRAINING_SHARE) * part
            self.report({"phase": "sample", "fraction": fraction, "images": done, "of": total})

        def stop() -> None:
            if self._stop():
                raise Interrupted("stopped while sampling; the same command continues after the last whole block")

        reference = torch.empty(0)
        if stream is not None and not evaluation.protocol.streamed:  # a whole data set: only where it is compared
            reference = stream.all_images()
        scoring = Scoring(
            net,
            evaluation,
            first,
            make_folder(path.parent),
            identity_of(
                resolved.evaluation_hash + (prompts.manifest_sha256 if prompts else ""),
                *([net] if guide is None else [net, guide]),
            ),
            reference,
            self.folders.weights,
            execution,
            progress,
            stop,
            self.world,
            guide,
            decode,
            prompts.contexts_of if prompts else None,
        )
        scored = scoring.run()
        if scored is None:
            return
        remove_leftovers(path.parent)
        write_grid(path.parent / "samples.png", scored.images)
        protocol = canonical(resolved.evaluation.args["protocol"])
        record = Record(
            cell=resolved.cell.name,
            scale=resolved.scale,
            trajectory_hash=resolved.trajectory_hash,
            evaluation_hash=resolved.evaluation_hash,
            config=resolved.config,
            seed=resolved.seed,
            milestone_nimg=milestone,
            nimg=int(meta["nimg"]),
            range=task.range,
            first_seed=first,
            num_samples=evaluation.num_samples,
            nfe=scored.nfe,
            metrics={
                name: Metric(float(v), evaluation.num_samples, protocol["class"]) for name, v in scored.scores.items()
            },
            protocol=protocol,
            weights="imported" if imported else "trained",
            imported=[origin_of(one) for one in imported],
            data_manifest_sha256=meta["data_manifest"],
            prompts_manifest_sha256=prompts.manifest_sha256 if prompts else "",
            reference_sha256=evaluation.protocol.reference_sha256(reference, self.folders.weights),
            sources_sha256=assets.sources_sha256(),
            git_revision=provenance.git_state()[0],
            git_dirty=provenance.git_state()[1],
            versions=provenance.versions(),
            hardware=provenance.hardware(),
            execution=dataclasses.asdict(execution),
            threads=torch.get_num_threads(),
            world_size=self.world.size,
            seconds=scored.seconds,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        write_record(self.folders.runs, record)
        scoring.clean()


def fill_imported(net: Network, imported: Imported) -> None:
    """Load imported weights into a cell's network."""
    fill(net.model if type(net).__name__ in BARE else net, imported)


def origin_of(imported: Imported) -> dict[str, Any]:
    """Where imported weights come from, for manifest and record."""
    return {key: getattr(imported, key) for key in ("source", "sha256", "kind", "nimg", "std")}


def has_weights(job: Job, folder: Path) -> bool:
    """Whether every snapshot that a job's cells need lies in the folder of its run."""
    return all(file.exists() for ema, milestone in _needs(job) for file in snapshots.needed(folder, ema, [milestone]))


def _needs(job: Job) -> list[tuple[Any, int]]:
    """(EMA, milestone) of everything that a job's cells look at."""
    return [(build(leg.ema), milestone) for leg in job.legs() for milestone in leg.milestones]


def build_trajectory(of: Resolved | Leg) -> Trajectory:
    """Build a trajectory's objects; the initial weights follow from its seed."""
    torch.manual_seed(derive_seed(of.trajectory.args["seed"], "init"))
    return build(of.trajectory)


def _say(owner: Owner, folder: Path) -> str:
    """The owner of a claim, and on another host how to end the claim if it is gone."""
    return f"{owner} ({how_to_release(folder)})" if owner.host != socket.gethostname() else str(owner)


def settle(execution: Execution, world: World = World()) -> Execution:
    """The execution settings with `auto` decided for this machine, and the GPU for this process."""
    device = execution.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and world.size > 1:
        device = f"cuda:{world.local_rank}"
    return dataclasses.replace(execution, device=device)


def _kept_milestones(folder: Path) -> list[int]:
    """Milestones that an earlier run of the trajectory was asked to keep; none where there is no readable manifest."""
    try:
        return list(json.loads((folder / "manifest.json").read_bytes())["tracks"]["milestones_nimg"])
    except (OSError, ValueError, KeyError, TypeError):
        return []

"""The training loop: one trajectory, from its first image or its last checkpoint to the milestones asked of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from repro.diffusion.draws import StepDraws, derive_seed
from repro.diffusion.images import from_uint8
from repro.diffusion.losses import drop_labels
from repro.errors import CorruptData, ReproError, UsageError
from repro.files import append_line, remove_leftovers
from repro.training import checkpoint, ema, snapshots
from repro.training.distributed import World
from repro.training.dynamics import Recorder
from repro.training.step import MicroBatch, NonFiniteLoss, StepResult, training_step
from repro.training.weights import FlatWeights

if TYPE_CHECKING:
    from repro.data.stream import ImageStream
    from repro.experiment import Execution, Trajectory

Progress = Callable[[dict[str, Any]], None]
CHECKPOINT_FORMAT = 2


class Interrupted(ReproError):
    """Training was asked to stop; its state is saved and the next run continues."""

    exit_code = 130


@dataclasses.dataclass
class Tracked:
    """What a trajectory keeps for its evaluations. No part of its identity: it moves no weight.

    profiles: EMA name -> EMA; milestones: images at which every EMA is written, increasing.
    """

    profiles: Mapping[str, ema.Profile]
    milestones: Sequence[int]


class Trainer:
    """Trains one trajectory in its folder.

    Args:
        trajectory: built objects; the network holds its initial weights.
        identity: the trajectory's hash, kept in every checkpoint.
        stream: the data.
        folder: `runs/<trajectory hash>`.
        tracked: EMA profiles and milestones.
        execution: how to execute; moves no number but by float rounding.
        progress: called about twice a second with {"nimg", "total", "loss", "lr", "img_per_sec"}.
        stop: asked after every step; True ends training after a checkpoint with `Interrupted`.
        world: the processes that train together, each with the same arguments; the first one writes the files.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        identity: str,
        stream: ImageStream,
        folder: Path,
        tracked: Tracked,
        execution: Execution,
        progress: Progress = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
        world: World = World(),
    ) -> None:
        if trajectory.batch < 1:
            raise UsageError(f"Trajectory.batch must be 1 or more, not {trajectory.batch}")
        self.trajectory = trajectory
        self.identity = identity
        self.stream = stream
        self.folder = folder
        self.tracked = tracked
        self.execution = execution
        self.progress = progress
        self.stop = stop
        self.world = world
        self.share = world.share(trajectory.batch)
        self.device = torch.device(execution.device)
        self.net = trajectory.denoiser.to(self.device).train()
        self.weights = FlatWeights(self.net)
        self.optimizer = trajectory.optimizer.create(self.weights.vector)
        self.profiles = dict(tracked.profiles)
        self.averages = {name: self.weights.vector.detach().clone() for name in self.profiles}
        self.nimg = 0
        self.notes: list[str] = []
        if world.first:
            for part in (folder, folder / "ema"):
                remove_leftovers(part)
            self._resume()
        world.wait()  # the first process may have put a damaged checkpoint aside
        if not world.first:
            self._resume()
        world.together(self.nimg)

    def _resume(self) -> None:
        loaded = checkpoint.load(self.folder)
        self.notes += [f"{name} is damaged and was passed over" for name in loaded.damaged]
        if loaded.state is None:
            self.notes += ["no whole checkpoint is left: training starts anew"] if loaded.damaged else []
            return
        state = loaded.state
        if loaded.damaged:
            self.notes.append(f"training continues from {state.get('nimg')} images")
        if state.get("format") != CHECKPOINT_FORMAT or state.get("trajectory") != self.identity:
            raise CorruptData(f"{self.folder}: its checkpoint belongs to another trajectory or version of repro")
        if state["data_manifest"] != self.stream.manifest_sha256:
            raise UsageError(f"{self.folder}: was trained on another data manifest ({state['data_manifest'][:16]})")
        missing = sorted(set(self.averages) - set(state["averages"]))
        if missing and state["nimg"] > 0:
            raise UsageError(
                f"{self.folder}: the EMA {missing[0]} was not tracked from its start and cannot be rebuilt exactly; "
                "train it anew under another --runs folder"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        # A profile that an earlier run tracked for another cell is tracked on, so that it stays exact.
        self.profiles |= {name: ema.from_settings(settings) for name, settings in state["profiles"].items()}
        self.averages |= {name: average.to(self.device) for name, average in state["averages"].items()}
        self.nimg = state["nimg"]

    def _state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "trajectory": self.identity,
            "data_manifest": self.stream.manifest_sha256,
            "nimg": self.nimg,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages,
            "profiles": {name: profile.settings() for name, profile in self.profiles.items()},
        }

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        if self.world.first:
            checkpoint.save(self.folder, self.nimg, self._state())
        self.world.wait()

    def run(self) -> None:
        """Train to the last milestone, writing checkpoints, the log and every EMA at every milestone.

        Raises:
            Interrupted: `stop` said so, and the state is saved; or Ctrl-C, and the last checkpoint stands.
            NonFiniteLoss: names the step; the last good state is saved.
            UsageError: the weights at a milestone that has passed were not kept.
        """
        total = self.tracked.milestones[-1]
        self._complete_snapshots()
        for note in self.notes:
            self._log({"note": note})
        saved = shown = started = time.monotonic()
        begin = self.nimg
        recorder = Recorder(self.net, self.folder, self.execution.dynamics if self.world.first else 0, total)
        while self.nimg < total:
            due = recorder.is_due(self.nimg, self.trajectory.batch)
            with recorder.watching(self.nimg) if due else contextlib.nullcontext():
                result = self._guarded_step()
            now = time.monotonic()
            self._write_snapshots()
            if now - shown > 0.5 or self.nimg >= total:
                event = self._event(result, total, (self.nimg - begin) / max(now - started, 1e-9))
                self._log(event)
                self.progress(event)
                shown = now
            if self.world.any(now - saved > self.execution.checkpoint_seconds):
                self.save()
                saved = now
            if self.world.any(self.stop()) and self.nimg < total:
                self.save()
                raise Interrupted(f"stopped at {self.nimg} of {total} images; the same command continues")
        self.save()

    def _log(self, entry: dict[str, Any]) -> None:
        """One line of JSON; what is not finite becomes null, which every reader of JSON knows."""
        if not self.world.first:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        append_line(self.folder / "log.jsonl", json.dumps({"timestamp": time.time(), **plain}))

    def _event(self, result: StepResult, total: int, speed: float) -> dict[str, Any]:
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "nimg": self.nimg,
            "total": total,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "img_per_sec": speed,
        }

    def _guarded_step(self) -> StepResult:
        try:
            return self.step()
        except NonFiniteLoss as error:
            step = self.nimg // self.trajectory.batch
            if bool(self.weights.vector.isfinite().all()):
                self.save()  # no weight has changed in the failed step: this is the last good state
            text = f"{error} at step {step} ({self.nimg} images) of {self.folder.name}; the last good state is kept"
            self._log({"note": text})
            raise NonFiniteLoss(text) from None
        except KeyboardInterrupt:  # somewhere within a step: the state may be between two
            raise Interrupted(f"interrupted at {self.nimg} images; the last checkpoint continues") from None

    def step(self) -> StepResult:
        """One step of the whole batch, then the EMAs. All randomness follows from (seed, step, purpose)."""
        trajectory, batch = self.trajectory, self.trajectory.batch
        step = self.nimg // batch
        _seed_dropout(derive_seed(trajectory.seed, "dropout", step, self.world.rank), self.device)
        first, count = self.share
        size = self.execution.micro_batch or count
        result = training_step(
            self.net,
            trajectory.loss,
            self.weights,
            self.optimizer,
            [self._micro_batch(step, at, min(size, first + count - at)) for at in range(first, first + count, size)],
            lr=trajectory.lr(self.nimg),
            batch=batch,
            augment=trajectory.augment,
            loss_scale=trajectory.loss_scale,
            reduction=trajectory.loss_reduction,
            clip_norm=trajectory.clip_norm,
            infinite_gradient=trajectory.infinite_gradient,
            world=self.world,
        )
        for name, profile in self.profiles.items():
            ema.update(self.averages[name], self.weights.vector, profile.beta(self.nimg, batch))
        self.nimg += batch
        return result

    def _micro_batch(self, step: int, start: int, count: int) -> MicroBatch:
        """Images start to start + count of the step's global batch, with their draws."""
        trajectory, batch = self.trajectory, self.trajectory.batch
        images, labels = self.stream.batch(step * batch + start, count)
        draws = StepDraws(trajectory.seed, step, batch, start, count)
        hot: Tensor | None = None
        if labels is not None:
            hot = functional.one_hot(labels, self.net.label_dim).float().to(self.device)
            hot = drop_labels(hot, float(getattr(self.net.model, "label_dropout", 0.0)), draws)
        # Latents come as the network sees them; pixels as they are stored.
        images = from_uint8(images) if images.dtype == torch.uint8 else images
        return MicroBatch(images.to(self.device), hot, draws)

    def _complete_snapshots(self) -> None:
        """Write what is missing of the milestone that the present state stands at; refuse where an earlier one is."""
        missing = [
            milestone
            for milestone in self.tracked.milestones
            for profile in self.tracked.profiles
            if milestone <= self.nimg and not snapshots.path(self.folder, milestone, profile).exists()
        ]
        lost = sorted(set(missing) - set(self._here()))
        if lost:
            raise UsageError(
                f"{self.folder}: training is at {self.nimg} images and the weights at {lost[0]} were not kept; "
                "train it anew under another --runs folder"
            )
        if missing:
            self._write_snapshots()

    def _here(self) -> list[int]:
        """The milestones that the step to the present state passed."""
        return [m for m in self.tracked.milestones if self.nimg - self.trajectory.batch < m <= self.nimg]

    def _write_snapshots(self) -> None:
        """After the step that passes a milestone: every EMA as safetensors, named by the milestone and the profile."""
        if not self.world.first:
            return
        for milestone in self._here():
            for profile in self.profiles:
                weights = snapshots.state_with(self.net, self.weights.split(self.averages[profile]))
                meta = {"trajectory": self.identity, "nimg": self.nimg, "data_manifest": self.stream.manifest_sha256}
                snapshots.save(self.folder, milestone, profile, weights, meta)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout draws from; `torch.manual_seed` would take half a millisecond for all of them."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

"""Golden cases of the augmentation pipe, of image quantisation and of the Frechet distance."""

from __future__ import annotations

import torch
from harness import Case, RecordedDraws, Runner

from repro.diffusion.images import to_uint8
from repro.metrics.frechet import Moments, frechet_distance
from repro.training.augment import AugmentPipe


def run_augment(case: Case) -> None:
    pipe = AugmentPipe(**case.config)
    draws = RecordedDraws([("augment", kind, case.input(name)) for name, kind, _ in case.meta["draw_order"]])
    images, labels = pipe(case.input("images"), draws)
    draws.finish()
    assert pipe.label_dim == labels.shape[1]
    case.check("images", images)
    case.check("labels", labels)


def run_quantise(case: Case) -> None:
    values = to_uint8(case.input("x").double())  # as the case says
    assert values.dtype == torch.uint8
    case.check("uint8", values)


def run_frechet(case: Case) -> None:
    ours, reference = Moments(), Moments()
    ours.update(case.arrays["in/features"])
    reference.update(case.arrays["in/ref"])
    case.check("mu", ours.mean)
    case.check("sigma", ours.covariance)
    distance = frechet_distance(ours.mean, ours.covariance, reference.mean, reference.covariance)
    case.check("fid", distance)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("augment", "AugmentPipe"): run_augment,
    ("metric", "image quantisation"): run_quantise,
    ("metric", "fid"): run_frechet,
}

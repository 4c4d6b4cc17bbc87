"""Where the texts of generated images come from."""

from __future__ import annotations

import os

from repro.data.stream import ImageStream
from repro.errors import UsageError
from repro.experiment import Evaluation, Trajectory

PROMPTS_SEED = 0
"""Of the choice among an image's captions: the same for every replicate, which differ in training alone."""


def open_prompts(
    evaluation: Evaluation, trajectory: Trajectory, data_dir: str | os.PathLike[str], trained: ImageStream | None
) -> ImageStream | None:
    """The data whose captions are drawn; None for a network without texts. The network learns the empty text from it.

    Args:
        trained: the data that the network was trained on, where they are there.

    Raises:
        UsageError: the network takes texts and there are none, or another model has read them than those of training.
        MissingPrerequisite: they have not been prepared.
    """
    if not trajectory.data.context_tokens:
        return None
    if evaluation.prompts is None:
        raise UsageError("Evaluation.prompts is not set: the network takes texts, and images are generated from some")
    prompts = evaluation.prompts.open(data_dir, PROMPTS_SEED)
    ours, theirs = (stream and stream.manifest.options.get("text_sha256") for stream in (prompts, trained))
    if trained is not None and ours != theirs:
        place, other = (data.folder(data_dir) for data in (evaluation.prompts, trajectory.data))
        raise UsageError(
            f"{place}: its texts were read by another model ({str(ours)[:16]}) than those of {other} "
            f"({str(theirs)[:16]})"
        )
    if prompts.empty_context is not None:
        trajectory.denoiser.empty_context = prompts.empty_context
    return prompts

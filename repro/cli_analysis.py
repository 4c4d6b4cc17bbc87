"""The verbs that look into networks and training: stability, acceleration, ema, dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repro.cli_options import (
    add_computing,
    add_configuration,
    add_folders,
    add_json,
    add_selection,
    add_verb,
    at_least,
    verb_of,
)


def add(verbs: Any) -> None:
    """Add the verbs to the command line."""
    _stability(verbs)
    _acceleration(verbs)
    _ema(verbs)
    _dynamics(verbs)


def _stability(verbs: Any) -> None:
    verb = add_verb(
        verbs, "stability", verb_of("stability.stability"),
        "norms, gradients and responses of networks by the scaling of their long skips",
        "repro stability scalelong/table1/none/cifar10-uvit-s2 scalelong/table1/ls/cifar10-uvit-s2 --scale mini",
    )  # fmt: skip
    verb.add_argument("cells", nargs="+", metavar="CELL")
    verb.add_argument(
        "--steps", type=at_least(1), default=0, metavar="N",
        help="train N steps, in no folder of runs, and measure on the way (default: the milestones that runs have)",
    )  # fmt: skip
    verb.add_argument("--every", type=at_least(1), metavar="K", help="with --steps: measure every K steps (default 10)")
    verb.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="training seed (0)")
    verb.add_argument("--out", type=Path, metavar="NAME", help="NAME.png, .svg, ... (default: beside the runs)")
    add_configuration(verb)
    add_folders(verb)
    add_json(verb)


def _acceleration(verbs: Any) -> None:
    verb = add_verb(
        verbs, "acceleration", verb_of("acceleration.acceleration"),
        "images that each row of a table needs to reach the best score of its first row",
        "repro acceleration scalelong/table1 --scale mini --baseline none",
    )  # fmt: skip
    verb.add_argument("table", metavar="TABLE")
    verb.add_argument("--baseline", metavar="ROW", help="the row to compare with (default: the table's first)")
    add_selection(verb)
    add_configuration(verb)
    add_folders(verb)
    add_json(verb)


def _ema(verbs: Any) -> None:
    verb = add_verb(
        verbs, "ema", verb_of("ema.run"), "score averages of the weights of many lengths, all from one training run",
        "repro ema edm2/table1/g/imagenet512 --scale mini --std 0.05..0.25",
    )  # fmt: skip
    verb.add_argument("cell", metavar="CELL")
    verb.add_argument(
        "--std", nargs="+", required=True, metavar="STD",
        help="lengths: 0.1, 0.05..0.25 (nine of them), 0.05..0.25..0.01 or 0.05,0.06,...,0.25 (in steps); several",
    )  # fmt: skip
    add_computing(verb)
    add_json(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help="where to draw the curve (default: beside the runs)")


def _dynamics(verbs: Any) -> None:
    verb = add_verb(
        verbs, "dynamics", verb_of("dynamics.run"), "how activations, weights and updates drift in training",
        "repro dynamics edm2/table1/a/imagenet512 edm2/table1/g/imagenet512 --scale mini",
    )  # fmt: skip
    verb.add_argument("cells", nargs="+", metavar="CELL")
    add_configuration(verb)
    add_folders(verb)
    verb.add_argument("--first-seed", type=at_least(0), default=0, metavar="S", help="the training seed (default 0)")
    add_json(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help="where to draw (default: beside the runs)")

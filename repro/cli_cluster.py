"""The verbs of clusters: plan, submit, status, logs, cancel."""

from __future__ import annotations

from typing import Any

from repro.cli_options import Parser, add_configuration, add_folders, add_json, add_selection, add_verb, verb_of


def add(verbs: Any) -> None:
    """Add the verbs to the command line."""
    verb = add_verb(
        verbs, "plan", verb_of("planning.plan"), "what tables need, what of it is done, and what the rest costs",
        "repro plan edm/table2 edm/table3 --cluster example-gpu",
    )  # fmt: skip
    verb.add_argument("--all", action="store_true", help="every table of every paper")
    _tables(verb)
    verb.add_argument("--cluster", metavar="NAME", help="a profile of slurm/, or a Gin file (default: one GPU)")
    add_json(verb)


def _tables(verb: Parser) -> None:
    verb.add_argument("tables", nargs="*", metavar="TABLE", help="such as edm/table2")
    add_selection(verb)
    add_configuration(verb)
    add_folders(verb)
    verb.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="replicates: training seeds first to first + N - 1"
    )
    verb.add_argument("--first-seed", type=int, default=0, metavar="S", help="the first training seed (default 0)")
    verb.add_argument("--train", action="store_true", help="train where the paper evaluated published weights")

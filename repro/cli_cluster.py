"""The verbs of clusters: plan, submit, status, logs, cancel."""

from __future__ import annotations

from typing import Any

from repro.cli_options import (
    Parser,
    add_configuration,
    add_folders,
    add_json,
    add_published,
    add_replicates,
    add_runs,
    add_selection,
    add_verb,
    at_least,
    seconds,
    verb_of,
)


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

    verb = add_verb(
        verbs, "submit", verb_of("cluster.submit"), "compute what tables miss on a SLURM cluster",
        "repro submit edm/table2 --cluster example-gpu --dry-run",
    )  # fmt: skip
    _tables(verb)
    verb.set_defaults(all=None)  # the verb has no --all
    verb.add_argument("--cluster", required=True, metavar="NAME", help="a profile of slurm/, or a Gin file")
    verb.add_argument("--dry-run", action="store_true", help="print the batch scripts and submit nothing")
    verb.add_argument("--retry", action="store_true", help="submit again what failed or was cancelled")
    add_json(verb)

    verb = add_verb(
        verbs, "status", verb_of("cluster.status"), "how what was submitted stands (exit 1 where something failed)",
        "repro status edm/table2 --watch",
    )  # fmt: skip
    verb.add_argument("table", nargs="?", metavar="TABLE", help="only this table, row or cell")
    verb.add_argument(
        "--watch", nargs="?", type=seconds, const=10.0, metavar="SECONDS", help="again every 10 s, until all is over"
    )
    add_runs(verb)
    add_json(verb)

    verb = add_verb(
        verbs, "logs", verb_of("cluster.logs"), "the end of the logs of a cell's jobs",
        "repro logs edm/table2/f/cifar10-cond-vp --follow",
    )  # fmt: skip
    verb.add_argument("cell", metavar="CELL")
    verb.add_argument("--lines", type=at_least(1), default=20, metavar="N", help="lines of each log (20)")
    verb.add_argument("--follow", action="store_true", help="go on with what is appended, until Ctrl-C")
    verb.add_argument("--stage", choices=("train", "evaluate"), help="only the logs of this stage")
    verb.add_argument("--rank", type=at_least(0), default=0, metavar="R", help="the process (0)")
    verb.add_argument("--seed", type=at_least(0), metavar="S", help="the replicate (default: the first)")
    add_runs(verb)

    verb = add_verb(
        verbs, "cancel", verb_of("cluster.cancel"), "cancel the jobs of a table, row or cell",
        "repro cancel edm/table2",
    )  # fmt: skip
    verb.add_argument("name", nargs="?", metavar="TABLE", help="a table, row or cell")
    verb.add_argument("--all", action="store_true", help="everything that was submitted to this folder of runs")
    add_runs(verb)


def _tables(verb: Parser) -> None:
    verb.add_argument("tables", nargs="*", metavar="TABLE", help="such as edm/table2")
    add_selection(verb)
    add_configuration(verb)
    add_folders(verb)
    add_published(verb)
    add_replicates(verb)

"""Options that several verbs share, and how a verb is added to the command line."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from repro.errors import UsageError
from repro.suggest import suggest

EXIT_CODES = """exit codes: 0 done, or the check holds; 1 the check fails, or a run failed; 2 usage error;
3 a prerequisite is missing, or nothing is comparable; 130 interrupted (the same command continues)"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and name the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        hint = suggest(str(value), choices) or f"; there are {', '.join(choices)}"
        what = f"{action.option_strings[0]} cannot be" if action.option_strings else "unknown verb"
        self.error(f"{what} {value!r}{hint}")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, `least` or more."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {value}")
        return value

    return convert


def seconds(text: str) -> float:
    """The type of an option that is a time: above 0, and finite."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, not {text}")
    return value


def binding(text: str) -> str:
    """The type of --gin: a binding, but not of the training seed, which is no part of a cell."""
    if text.split("=")[0].strip() == "Trajectory.seed":
        raise argparse.ArgumentTypeError(
            "Trajectory.seed is the replicate: --first-seed (of some verbs --seed) chooses it"
        )
    return text


def verb_of(name: str) -> Callable[[argparse.Namespace], int]:
    """`module.function` of `repro.verbs`, imported when the verb is used."""

    def run(options: argparse.Namespace) -> int:
        module, _, function = name.partition(".")
        verb: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"repro.verbs.{module}"), function)
        return verb(options)

    return run


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str) -> Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    epilog = f"example: {example}\n\n{EXIT_CODES}"
    verb: Parser = verbs.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=formatter)
    verb.set_defaults(run=run, prog=verb.prog)
    return verb


def add_json(verb: Parser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def add_configuration(verb: Parser) -> None:
    verb.add_argument(
        "--scale", default="full", metavar="NAME", help="full (the paper, default), mini, or a file of gin/scale"
    )
    verb.add_argument(
        "--gin",
        action="append",
        type=binding,
        default=[],
        metavar="BINDING",
        help="e.g. 'Trajectory.batch = 64': the value at full scale, which a smaller one scales; repeatable",
    )


def add_selection(verb: Parser) -> None:
    verb.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows (default: all)")
    verb.add_argument(
        "--columns", nargs="+", metavar="COLUMN", help="only these columns (default: all; below full, the table's own)"
    )


def add_folders(verb: Parser) -> None:
    verb.add_argument(
        "--runs", action="append", type=Path, metavar="DIR",
        help="folder of runs (default: $REPRO_RUNS or ./runs); repeatable, the first is written, all are read",
    )  # fmt: skip
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of prepared data (default: $REPRO_DATA or ./data)"
    )
    verb.add_argument("--weights", type=Path, metavar="DIR", help="folder of metric weights and reference statistics")


def add_weights(verb: Parser) -> None:
    verb.add_argument("--weights", type=Path, metavar="DIR", help="folder of metric weights and reference statistics")


def add_scoring(verb: Parser) -> None:
    add_weights(verb)
    verb.add_argument("--weights-sha256", metavar="HEX", help="digest of the extractor's weights, if not the published")
    verb.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda or auto (default)")


def add_from_published(verb: Parser) -> None:
    verb.add_argument(
        "--from-published", action="store_true", help="the imported weights of cells that have some; trains nothing"
    )


def add_published(verb: Parser) -> None:
    add_from_published(verb)
    verb.add_argument(
        "--published", type=Path, metavar="DIR", help="folder of imported checkpoints (default: $REPRO_PUBLISHED or "
        "./published)",
    )  # fmt: skip


def add_computing(verb: Parser) -> None:
    add_configuration(verb)
    add_folders(verb)
    add_published(verb)
    add_replicates(verb)
    verb.add_argument("--jobs", type=at_least(1), metavar="N", help="processes (default: one a core)")
    verb.add_argument("--yes", action="store_true", help="do not ask before more than an hour of work")


def add_replicates(verb: Parser) -> None:
    verb.add_argument(
        "--seeds", type=at_least(1), default=1, metavar="N", help="replicates: training seeds first to first + N - 1"
    )
    verb.add_argument(
        "--first-seed", type=at_least(0), default=0, metavar="S", help="the first training seed (default 0)"
    )
    verb.add_argument("--train", action="store_true", help="train where the paper evaluated published weights")


def add_runs(verb: Parser) -> None:
    """The folders of runs alone, for verbs that need neither data nor weights."""
    verb.add_argument(
        "--runs", action="append", type=Path, metavar="DIR", help="folder of runs (default: $REPRO_RUNS or ./runs)"
    )
    verb.set_defaults(data=None, weights=None)


def add_format(verb: Parser) -> None:
    verb.add_argument(
        "--format", choices=("md", "latex", "html", "csv", "json", "svg"), default="md", help="form of the table"
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="where to write the table")

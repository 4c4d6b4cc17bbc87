"""The verbs. Heavy imports (torch, pandas) happen inside the verb that needs them: `repro list` is instant."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repro import __version__, cli_analysis, cli_cluster
from repro.cli_options import EXIT_CODES, Parser
from repro.cli_options import add_computing as _computing
from repro.cli_options import add_configuration as _configuration
from repro.cli_options import add_folders as _folders
from repro.cli_options import add_format as _format
from repro.cli_options import add_from_published as _from_published
from repro.cli_options import add_json as _json
from repro.cli_options import add_runs as _runs
from repro.cli_options import add_scoring as _scoring
from repro.cli_options import add_selection as _selection
from repro.cli_options import add_verb as _verb
from repro.cli_options import add_weights as _weights
from repro.cli_options import at_least as _at_least
from repro.cli_options import verb_of as _of
from repro.errors import ReproError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. An error is one line; --debug adds the traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        options, unknown = parser().parse_known_args([word for word in words if word != "--debug"])
        if unknown:
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)} (see `{options.prog} --help`)")
        verb: Callable[[argparse.Namespace], int] = options.run
        options.debug = debug
        return verb(options)
    except ReproError as error:
        if debug:
            traceback.print_exc()
        print(f"repro: {_in_words(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("repro: interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"repro: {type(error).__name__}: {_one_line(error)} (--debug shows where)", file=sys.stderr)
        return 1


def _in_words(error: ReproError) -> str:
    """One line; of several missing things a line each."""
    if len(error.args) > 1:
        return "\n  - ".join([f"{len(error.args)} things are missing:", *(_one_line(part) for part in error.args)])
    return _one_line(error)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def parser() -> Parser:
    """The command line of `repro`."""
    top = Parser(
        prog="repro",
        description="Reproduce the tables of diffusion-model papers from configuration.",
        epilog="example: repro reproduce edm/table2 --scale mini\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"repro {__version__}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _looking_verbs(verbs)
    _table_verbs(verbs)
    _clean_verb(verbs)
    _check_verb(verbs)
    cli_analysis.add(verbs)
    _data_verbs(verbs)
    _metric_verbs(verbs)
    _record_verbs(verbs)
    _weights_verbs(verbs)
    _export_verb(verbs)
    cli_cluster.add(verbs)
    return top


def _looking_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "list", _of("listing.run"), "tables, rows, columns and cells", "repro list edm/table2 --json")
    verb.add_argument("table", nargs="?", metavar="TABLE", help="only this table, such as edm/table2")
    verb.add_argument("--published", action="store_true", help="the published weights: files, sizes, and their cells")
    _json(verb)

    verb = _verb(
        verbs, "show", _of("showing.show"), "a cell's resolved configuration, identity, size and cost",
        "repro show edm/table2/f/cifar10-cond-vp --scale mini",
    )  # fmt: skip
    verb.add_argument("cell", metavar="CELL")
    _configuration(verb)
    _json(verb)

    verb = _verb(
        verbs, "diff", _of("showing.diff"), "what changes between two cells",
        "repro diff edm/table2/e/cifar10-cond-vp edm/table2/f/cifar10-cond-vp",
    )  # fmt: skip
    verb.add_argument("first", metavar="CELL")
    verb.add_argument("second", metavar="CELL")
    _configuration(verb)
    _json(verb)


def _table_verbs(verbs: Any) -> None:
    verb = _verb(
        verbs, "run", _of("computing.run"), "compute one cell's missing records",
        "repro run edm/table2/f/cifar10-cond-vp --scale mini --seeds 3",
    )  # fmt: skip
    verb.add_argument("cell", metavar="CELL")
    _computing(verb)
    _json(verb)

    verb = _verb(
        verbs, "reproduce", _of("computing.reproduce"), "compute what a table misses, then print and write it",
        "repro reproduce edm/table2 --scale mini --rows e f --columns cifar10-cond-vp --seeds 3",
    )  # fmt: skip
    verb.add_argument("table", metavar="TABLE")
    _selection(verb)
    _computing(verb)
    _format(verb)

    verb = _verb(
        verbs, "collect", _of("reporting.collect_table"), "assemble a table from the records that there are",
        "repro collect edm/table2 --scale mini --format latex",
    )  # fmt: skip
    verb.add_argument("table", metavar="TABLE")
    _selection(verb)
    _configuration(verb)
    _folders(verb)
    _from_published(verb)
    _format(verb)

    verb = _verb(
        verbs, "plot", _of("plotting.plot"), "draw a table or figure from the records that there are, as PNG and SVG",
        "repro plot edm/figure2 --scale mini --out figure2",
    )  # fmt: skip
    verb.add_argument("table", metavar="TABLE")
    _selection(verb)
    _configuration(verb)
    _folders(verb)
    verb.add_argument(
        "--out", type=Path, metavar="FILE",
        help="FILE.png or FILE.svg, or a name without either for both (default: beside the runs)",
    )  # fmt: skip


def _clean_verb(verbs: Any) -> None:
    verb = _verb(
        verbs, "clean", _of("clean.run"), "free what no record or reconstruction needs; a dry run by default",
        "repro clean --runs runs",
    )  # fmt: skip
    _runs(verb)
    verb.add_argument("--yes", action="store_true", help="remove the files; without it they are only counted")
    _json(verb)


def _check_verb(verbs: Any) -> None:
    verb = _verb(
        verbs, "check", _of("reporting.check"), "are the numbers still what they were?",
        "repro check edm/table2 --fingerprint --junit report.xml",
    )  # fmt: skip
    verb.add_argument("table", metavar="TABLE")
    verb.add_argument(
        "--fingerprint", action="store_true", help="a few deterministic steps of every cell, seconds each"
    )
    verb.add_argument("--allow-stale", action="store_true", help="take records made by other sources of repro too")
    verb.add_argument("--junit", type=Path, metavar="FILE", help="write the verdicts as JUnit XML")
    _selection(verb)
    _configuration(verb)
    _folders(verb)
    _json(verb)


def _data_verbs(verbs: Any) -> None:
    group = verbs.add_parser("data", help="prepare, verify and describe data sets", description="Data sets as shards.")
    verbs = group.add_subparsers(metavar="VERB", required=True, parser_class=Parser)

    verb = _verb(
        verbs, "prepare", _of("data.prepare"), "sources to shards; the same command continues what was stopped",
        "repro data prepare ffhq --source images1024x1024.zip --resolution 64 --out data",
    )  # fmt: skip
    verb.add_argument("name", metavar="NAME", help="a data set of `repro data list`")
    verb.add_argument(
        "--source", metavar="PATH", help="folder, zip or archive; for remote shards a URL or pipe:COMMAND"
    )
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of prepared data, in which the set gets a folder of its own "
        "(default: $REPRO_DATA or ./data)",
    )  # fmt: skip
    verb.add_argument(
        "--resolution", type=_at_least(1), metavar="R", help="height and width in pixels (default: the papers')"
    )
    verb.add_argument("--channels", type=_at_least(1), metavar="C", help="3 (default), or 1 for grey (digits: 1)")
    verb.add_argument("--crop", metavar="MODE", help="resize, center-crop, dhariwal, celeba, center-crop-wide:HEIGHT")
    verb.add_argument(
        "--classes", type=_at_least(1), metavar="N", help="class folders, of NAME folder or a part of imagenet"
    )
    verb.add_argument(
        "--count", type=_at_least(1), metavar="N", help="images expected, where it is not the data set's number"
    )
    verb.add_argument("--convert", action="store_true", help="turn any 8-bit colour mode into RGB (or grey)")
    verb.add_argument("--skip-bad", action="store_true", help="leave out unusable files, and name them in the manifest")
    verb.add_argument("--shard-images", type=_at_least(1), metavar="N", help="images a shard (default: about 64 MB)")
    verb.add_argument("--jobs", type=_at_least(1), metavar="N", help="processes (default: one a core)")
    verb.add_argument("--form", choices=("edm2", "dit", "coco"), help="latents: what is stored of the posterior")
    verb.add_argument("--flip", choices=("none", "coin", "both"), default="none", help="latents: mirror images")
    verb.add_argument("--vae", metavar="DIR", help="latents: folder or hub name of an AutoencoderKL")
    verb.add_argument("--text-model", metavar="DIR", help="latents with captions: folder or hub name of a CLIP model")
    verb.add_argument("--captions", type=Path, metavar="FILE", help="latents with captions: COCO's captions_*.json")
    verb.add_argument("--device", default="auto", help="latents: cpu, cuda or auto (default)")

    verb = _verb(
        verbs, "verify", _of("data.verify"), "read every byte; name the shard and member that is wrong",
        "repro data verify data/ffhq-64x3",
    )  # fmt: skip
    verb.add_argument("folder", type=Path, metavar="DIR")

    verb = _verb(
        verbs, "info", _of("data.info"), "counts, classes, options and a picture of a prepared set",
        "repro data info data/ffhq-64x3 --picture ffhq.png",
    )  # fmt: skip
    verb.add_argument("folder", type=Path, metavar="DIR")
    verb.add_argument("--picture", type=Path, metavar="FILE", help="the grid of images (default: ./NAME.png)")
    _json(verb)

    verb = _verb(
        verbs,
        "list",
        _of("data.list_sets"),
        "the data sets: where to obtain them, licence, size, counts",
        "repro data list",
    )
    _json(verb)


def _metric_verbs(verbs: Any) -> None:
    verb = _verb(
        verbs, "fid", _of("metrics.fid"), "the distance of two sets of images, by several libraries side by side",
        "repro fid samples/ cifar10-32x32 --backends own/tf1 torch-fidelity/tf1",
    )  # fmt: skip
    what = "folder, zip, tar or shards of images, npz batch, statistics (npz, pkl, pt), or id of a reference"
    verb.add_argument("first", metavar="A", help=f"generated images: {what}")
    verb.add_argument("second", metavar="B", help=f"reference: {what}")
    verb.add_argument("--backends", nargs="+", metavar="NAME", help="such as own/tf1 or clean-fid/clean")
    verb.add_argument("--n", type=_at_least(1), metavar="N", help="only N random images of A, the same every time")
    verb.add_argument("--kid", action="store_true", help="also the kernel distance")
    verb.add_argument("--extrapolate", action="store_true", help="also FD at infinitely many samples")
    verb.add_argument("--no-error", action="store_true", help="leave out the standard error (block jackknife)")
    _scoring(verb)
    _json(verb)

    ref = _verb(verbs, "ref", _of("metrics.ref_info"), "reference statistics: make, import, info", "repro ref info")
    refs = ref.add_subparsers(metavar="WHAT", required=True, parser_class=Parser)
    verb = _verb(
        refs, "make", _of("metrics.ref_make"), "compute and store the statistics of real images",
        "repro ref make data/digits-8x1 --backend own/digits",
    )  # fmt: skip
    verb.add_argument("data_set", metavar="DATA", help="folder, zip or shards of images, npz, or a prepared data set")
    verb.add_argument("--backend", default="own/tf1", metavar="NAME", help="who computes the features (own/tf1)")
    verb.add_argument("--id", metavar="ID", help="name in the store (default: DATA and preprocessing)")
    verb.add_argument("--spatial", action="store_true", help="also the statistics of sFID")
    verb.add_argument("--real", type=_at_least(1), metavar="M", help="keep M features, for precision and recall")
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of prepared data (default: $REPRO_DATA or ./data)"
    )
    _scoring(verb)
    verb = _verb(
        refs, "import", _of("metrics.ref_import"), "store the statistics of a published file",
        "repro ref import fid_stats_cifar10_train_pytorch.npz --preprocessing legacy_pytorch",
    )  # fmt: skip
    verb.add_argument(
        "file", metavar="FILE", help="npz of NVIDIA, ADM, pytorch-fid or clean-fid, EDM2's pkl, torch-fidelity's pt"
    )
    verb.add_argument("--preprocessing", metavar="NAME", help="tf1, legacy_pytorch, clean, dinov2 or digits")
    verb.add_argument("--id", metavar="ID", help="name in the store (default: the file's)")
    verb.add_argument("--n", type=_at_least(1), metavar="N", help="number of images, where the file does not say")
    _weights(verb)
    verb = _verb(
        refs,
        "info",
        _of("metrics.ref_info"),
        "what a reference is; without REF all",
        "repro ref info digits-8x1-digits",
    )
    verb.add_argument("reference", nargs="?", metavar="REF", help="id or file")
    _weights(verb)
    _json(verb)

    verb = _verb(
        verbs, "doctor", _of("metrics.doctor"), "which protocols this machine can score, how to get what is missing",
        "repro doctor --download",
    )  # fmt: skip
    verb.add_argument("--download", action="store_true", help="fetch the weights that are missing")
    _weights(verb)
    _json(verb)


def _record_verbs(verbs: Any) -> None:
    records = _verb(
        verbs, "records", _of("records.export"), "records of several clusters: export, import",
        "repro records export results.tar",
    )  # fmt: skip
    kinds = records.add_subparsers(metavar="WHAT", required=True, parser_class=Parser)
    for name, run, help in (
        ("export", _of("records.export"), "pack the records of the folders of runs into FILE"),
        ("import", _of("records.import_"), "unpack the records of FILE into the folder of runs"),
    ):
        verb = _verb(kinds, name, run, help, f"repro records {name} results.tar --runs runs")
        verb.add_argument("file", type=Path, metavar="FILE")
        _runs(verb)


def _weights_verbs(verbs: Any) -> None:
    verb = _verb(
        verbs, "import", _of("importing.import_"), "a published checkpoint as weights of ours; nothing in it is run",
        "repro import edm-cifar10-32x32-cond-vp.pkl",
    )  # fmt: skip
    verb.add_argument("file", type=Path, metavar="FILE", help="a file of `repro list --published`, or one like it")
    verb.add_argument("--sha256", metavar="HEX", help="digest that the file must have; another is not read")
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="the new folder (default: one of the file's name in $REPRO_PUBLISHED "
        "or ./published)",
    )  # fmt: skip
    verb.add_argument(
        "--as", dest="as_", default="", metavar="NAME", help="the published name of a renamed file, of its network "
        "(DiT-XL/2), or the cell whose network it is",
    )  # fmt: skip
    verb.add_argument("--config", metavar="JSON", help="published constructor arguments that the file does not tell")
    verb.add_argument(
        "--kimg", type=_at_least(0), metavar="N", help="thousands of images seen, of a renamed EDM2 snapshot"
    )
    verb.add_argument(
        "--std", type=float, metavar="S", help="EMA width of a renamed EDM2 snapshot, or of the average to take from "
        "EDM2's training state (default: its live weights)",
    )  # fmt: skip
    _json(verb)


def _export_verb(verbs: Any) -> None:
    verb = _verb(
        verbs, "export", _of("importing.export"), "the trained weights behind a cell's value, with a model card",
        "repro export edm/table2/f/cifar10-cond-vp --scale mini --out f",
    )  # fmt: skip
    verb.add_argument("cell", metavar="CELL")
    verb.add_argument("--out", type=Path, metavar="DIR", help="the new folder (default: named like the cell)")
    verb.add_argument(
        "--seed", type=_at_least(0), metavar="S", help="training seed (default: the first that has a value)"
    )
    _configuration(verb)
    _folders(verb)
    _json(verb)

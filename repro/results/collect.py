"""Records -> the cells of a table: which numbers belong to it, what they add up to, and why the others do not."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repro import assets
from repro.cells import Resolved, experiment_digest, resolve
from repro.results.records import Record, read_all
from repro.results.references import load_references
from repro.results.sizes import SIZES, sizes
from repro.results.statistics import Outcome, against_paper, against_replicates
from repro.selection import choose_candidate
from repro.tables import Cell, Table

if TYPE_CHECKING:
    import pandas as pd


DIGITS = {"FID": "digits FD", "sFID": "digits sFD", "FD-DINOv2": "digits FD"}
"""What stands for a paper's distance at mini; another metric has its own name behind the word digits."""
REFERENCE_ONLY = "reference only"
STALE = "stale: made by other sources of repro (`repro check TABLE --fingerprint` tells whether these moved a number)"
TRAINED = "trained here; the paper evaluated published weights"
UNSHOWN = "imported weights were evaluated too; --from-published shows them"
IMPORTED_SEED = -1
"""Stands for the training seed of weights that were not trained here."""
Weights = Literal["auto", "published", "trained"]
"""Which weights count where a cell has both: `auto` takes imported ones where the paper did."""
MARKS = (STALE,)
"""Notes that mark a value without saying why it has no verdict."""


@dataclasses.dataclass(frozen=True)
class Replicate:
    """One training seed's value of a cell, and which candidate the selection rule chose.

    over_ranges: the values of all ranges at the chosen milestone, by range; curve: (milestone in images, preview) of
    every candidate, where previews choose.
    """

    seed: int
    value: float
    milestone_nimg: int
    range: int
    candidates: int
    nfe: float
    stale: bool
    manifest: str
    metrics: dict[str, float]
    over_ranges: tuple[float, ...]
    curve: tuple[tuple[int, float], ...] = ()

    def value_of(self, name: str) -> float:
        """A metric of the chosen record, or its NFE; nan where it has none of this name."""
        return self.nfe if name == "NFE" else self.metrics.get(name, math.nan)


@dataclasses.dataclass
class CellResult:
    """A cell with all that is known of it.

    metric: ours that decides, '' of a reference-only cell; metrics: all that its protocol has; replicates: complete
    ones, by seed; notes: why something is missing, stale, or not used; outcome: the test against the reference, or None
    where there is nothing to compare or no verdict is due; sizes: of its network at full scale, where the table shows
    them; imported: published name of the file whose weights these are the values of, '' where they were trained here.
    """

    cell: Cell
    metric: str
    replicates: list[Replicate]
    notes: list[str]
    metrics: tuple[str, ...] = ()
    outcome: Outcome | None = None
    rule: str = ""
    sizes: dict[str, float] = dataclasses.field(default_factory=dict)
    imported: str = ""

    @property
    def values(self) -> list[float]:
        return [replicate.value for replicate in self.replicates]

    @property
    def mean(self) -> float:
        return mean_and_sd(self.values)[0]

    @property
    def sd(self) -> float:
        """Sample standard deviation over replicates; nan for fewer than two."""
        return mean_and_sd(self.values)[1]

    @property
    def over_ranges(self) -> tuple[float, float, int]:
        """(mean, sd, number) of the values over ranges, where a replicate has several: mean and pooled variance over
        replicates of each one's. (nan, nan, 1) where there is one range."""
        several = [mean_and_sd(r.over_ranges) for r in self.replicates if len(r.over_ranges) > 1]
        if not several:
            return math.nan, math.nan, 1
        mean = sum(found[0] for found in several) / len(several)
        sd = math.sqrt(sum(found[1] ** 2 for found in several) / len(several))
        return mean, sd, len(self.replicates[0].over_ranges)

    @property
    def stale(self) -> bool:
        return any(replicate.stale for replicate in self.replicates)

    @property
    def verdict(self) -> str:
        """`holds`, `outside`, or '' where there is none."""
        return "" if self.outcome is None else ("holds" if self.outcome.holds else "outside")


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; nan where there are too few values."""
    n = len(values)
    mean = sum(values) / n if n else math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan


@dataclasses.dataclass
class Collection:
    """A table's results at one scale, and lines about record files that were not used."""

    table: Table
    scale: str
    cells: list[CellResult]
    notes: list[str]

    def own_name(self, metric: str) -> str:
        """What the paper's metric is called among ours: itself, or as the digits have it ("FID" is "digits FD")."""
        known = next((result.metrics for result in self.cells if result.metrics), ())
        if metric in ("NFE", *SIZES, *known):
            return metric
        return DIGITS.get(metric, f"digits {metric}")

    def frame(self) -> pd.DataFrame:
        """One line a cell: names, reference values, our mean, sd, n, minimum, verdict and notes."""
        import pandas as pd  # heavy

        return pd.DataFrame([row_of(result) for result in self.cells])


def row_of(result: CellResult) -> dict[str, Any]:
    """One cell as plain values, for CSV, JSON and data frames."""
    cell = result.cell
    nfe = mean_and_sd([replicate.nfe for replicate in result.replicates])[0]
    range_mean, range_sd, ranges = result.over_ranges
    return {
        "cell": cell.name,
        "row": cell.row,
        "column": cell.column,
        **{f"paper {name}": value for name, value in cell.reference.items()},
        "metric": result.metric,
        "mean": result.mean,
        "sd": result.sd,
        "n": len(result.values),
        "min": min(result.values, default=math.nan),
        "ranges": ranges,
        "mean over ranges": range_mean,
        "sd over ranges": range_sd,
        "NFE": nfe,
        "weights": ("imported" if result.imported else "trained") if result.replicates else "",
        "verdict": result.verdict,
        "notes": "; ".join(result.notes),
    }


def collect(
    table: Table,
    scale: str,
    runs: Sequence[Path],
    cells: Sequence[Cell],
    bindings: Sequence[str] = (),
    weights: Weights = "auto",
) -> Collection:
    """Assemble a table from the records in some runs folders.

    Args:
        cells: the cells to show.
        bindings: texts of `--gin`, as in the run.
        weights: which weights count where a cell has both imported and trained ones.
    """
    records, problems = read_all(runs)
    chosen = {cell.name: resolve(cell, scale, bindings) for cell in cells if not cell.reference_only}
    seeds = sorted({record.seed for record in records if record.scale == scale})
    owners: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, base in chosen.items():
        for seed in seeds:
            owners[base.with_seed(seed).evaluation_hash].append((name, seed))
        if (preview := base.preview()) is not None:
            for seed in seeds:
                owners[preview.with_seed(seed).evaluation_hash].append((previews_of(name), seed))
    imported = _imported(records, chosen, scale)
    for (name, _), base in imported.items():
        owners[base.evaluation_hash].append((name, IMPORTED_SEED))
    by_cell: dict[tuple[str, int], list[Record]] = defaultdict(list)
    unmatched: dict[str, int] = defaultdict(int)
    for record in _unique(records, problems):
        for owner in owners.get(record.evaluation_hash, ()):
            by_cell[owner].append(record)
        if record.evaluation_hash not in owners and record.cell in chosen and record.scale == scale:
            unmatched[record.cell] += 1
    given = {name: base for (name, _), base in imported.items() if by_cell.get((name, IMPORTED_SEED))}
    results = [
        _chosen(chosen[c.name], given.get(c.name), by_cell, seeds, weights) if c.name in chosen else _quoted(c)
        for c in cells
    ]
    for result in results:
        if not result.cell.reference_only and any(name in table.shown for name in SIZES):
            result.sizes = sizes(result.cell, bindings)
        if count := unmatched.get(result.cell.name):
            plural = "records were" if count > 1 else "record was"
            result.notes.append(f"{count} {plural} made with another configuration: not used")
    return Collection(table, scale, results, problems)


def _unique(records: Sequence[Record], problems: list[str]) -> list[Record]:
    """One record a key; others of the same key from other folders must agree, else it is said."""
    kept: dict[tuple[str, int, int], Record] = {}
    for record in records:
        first = kept.setdefault(record.key, record)
        if first.metrics != record.metrics:
            problems.append(f"two records of {record.cell} (seed {record.seed}) disagree; the first found is used")
    return list(kept.values())


def _quoted(cell: Cell) -> CellResult:
    """A cell that only the paper has."""
    return CellResult(cell, "", [], [f"{REFERENCE_ONLY}: {cell.reference_only}"])


def _imported(
    records: Sequence[Record], chosen: dict[str, Resolved], scale: str
) -> dict[tuple[str, tuple[str, ...]], Resolved]:
    """(cell, digests of imported files of which there are records) -> the cell with these weights."""
    digests = sorted({_digests(record) for record in records if record.scale == scale and record.imported})
    return {(name, found): base.with_imported(*found) for name, base in chosen.items() for found in digests
            if len(found) == len(base.legs)}  # fmt: skip


def _digests(record: Record) -> tuple[str, ...]:
    return tuple(str(origin.get("sha256")) for origin in record.imported)


def _chosen(
    base: Resolved,
    given: Resolved | None,
    by_cell: dict[tuple[str, int], list[Record]],
    seeds: Sequence[int],
    weights: Weights,
) -> CellResult:
    """A cell's result from imported weights where there are some that count, else from those trained here."""
    wanted = weights == "published" or (weights == "auto" and base.cell.starred and base.scale == "full")
    if given is not None and wanted:
        return _of_imported(given, by_cell)
    result = _result(base, by_cell, seeds)
    if given is not None:
        result.notes.append(UNSHOWN)
    return result


def _of_imported(given: Resolved, by_cell: dict[tuple[str, int], list[Record]]) -> CellResult:
    """The result of one imported file; of several the first by name, and the others are said."""
    found = by_cell[given.cell.name, IMPORTED_SEED]
    files = sorted({(" guided by ".join(str(o["source"]) for o in r.imported), _digests(r)) for r in found})
    name, digests = files[0]
    kept = [record for record in found if _digests(record) == digests]
    result = _result(given, {(given.cell.name, IMPORTED_SEED): kept}, [IMPORTED_SEED])
    result.imported = name
    result.notes.append(f"imported weights, {name} (sha256 {', '.join(digest[:16] for digest in digests)})")
    for other, digests in files[1:]:
        shown = ", ".join(digest[:16] for digest in digests)
        result.notes.append(f"imported weights of {other} (sha256 {shown}) were evaluated too: not shown")
    return result


def _result(base: Resolved, by_cell: dict[tuple[str, int], list[Record]], seeds: Sequence[int]) -> CellResult:
    metric = base.metric
    result = CellResult(base.cell, metric, [], [], base.metrics)
    if base.preview() is not None:
        _choose_by_preview(result, base, by_cell, seeds)
        _explain(result, base)
        return result
    selection = base.selection()
    wanted = len(selection.milestones()) * selection.ranges
    for seed in seeds:
        found = by_cell.get((base.cell.name, seed), [])
        if not found:
            continue
        manifests = {record.data_manifest_sha256 for record in found}
        scored = {(r.milestone_nimg, r.range): r.metrics[metric].value for r in found if metric in r.metrics}
        values = {place: value for place, value in scored.items() if math.isfinite(value)}
        choice = selection.choose(values)
        if choice is None or len(manifests) > 1:
            why = "on several data manifests" if len(manifests) > 1 else f"{len(values)} of {wanted} candidates"
            result.notes.append(f"seed {seed}: {why}")
            continue
        record = next(r for r in found if (r.milestone_nimg, r.range) == choice)
        over_ranges = tuple(values[choice[0], k] for k in range(selection.ranges))
        result.replicates.append(_replicate(record, values[choice], wanted, over_ranges))
    _explain(result, base)
    return result


def previews_of(cell: str) -> str:
    """Under what name the previews of a cell are kept apart from its evaluation."""
    return f"{cell} (previews)"


def _choose_by_preview(
    result: CellResult, base: Resolved, by_cell: dict[tuple[str, int], list[Record]], seeds: Sequence[int]
) -> None:
    """The replicates of a cell whose candidates are scored by previews: the evaluation of the chosen one."""
    selection, metric = base.selection(), base.metric
    for seed in seeds:
        previews = by_cell.get((previews_of(base.cell.name), seed), [])
        finals = by_cell.get((base.cell.name, seed), [])
        if not previews and not finals:
            continue
        scored = {r.milestone_nimg: r.metrics[metric].value for r in previews if metric in r.metrics}
        chosen = choose_candidate(selection, scored)
        final = {r.range: r for r in finals if r.milestone_nimg == chosen and math.isfinite(r.metrics[metric].value)}
        manifests = {record.data_manifest_sha256 for record in (*previews, *finals)}
        if chosen is None or len(final) < selection.ranges or len(manifests) > 1:
            count = len(selection.milestones())
            why = f"{len(scored)} of {count} previews, {len(final)} of {selection.ranges} evaluations of the chosen one"
            result.notes.append(f"seed {seed}: {'on several data manifests' if len(manifests) > 1 else why}")
            continue
        over_ranges = tuple(final[k].metrics[metric].value for k in range(selection.ranges))
        best = over_ranges.index(min(over_ranges))
        replicate = _replicate(final[best], over_ranges[best], len(scored), over_ranges)
        result.replicates.append(dataclasses.replace(replicate, curve=tuple(sorted(scored.items()))))


def _replicate(record: Record, value: float, candidates: int, over_ranges: tuple[float, ...]) -> Replicate:
    return Replicate(
        seed=record.seed,
        value=value,
        milestone_nimg=record.milestone_nimg,
        range=record.range,
        candidates=candidates,
        nfe=record.nfe,
        stale=record.sources_sha256 != assets.sources_sha256(),
        manifest=record.data_manifest_sha256,
        metrics={name: metric.value for name, metric in record.metrics.items()},
        over_ranges=over_ranges,
    )


def _explain(result: CellResult, base: Resolved) -> None:
    """Notes on what is missing or marked, and the verdict where one is due."""
    manifests = {replicate.manifest for replicate in result.replicates}
    if len(manifests) > 1:
        names = ", ".join(sorted(m[:8] for m in manifests))
        result.notes.append(f"replicates on different data manifests ({names}) are not averaged")
        result.replicates = []
        return
    if not result.replicates:
        if not result.notes:
            result.notes.append("no record")
        return
    if result.stale:
        result.notes.append(STALE)
    if result.cell.starred and base.scale == "full" and not base.imported:
        result.notes.append(TRAINED)
    judge(result, base)


def judge(result: CellResult, base: Resolved) -> None:
    """Set a result's outcome: against the paper at full scale, against the committed reference elsewhere."""
    try:
        _judge(result, base)
    except ValueError as error:
        result.notes.append(f"no verdict: {error}")


def _judge(result: CellResult, base: Resolved) -> None:
    values = result.values
    if base.scale == "full":
        if result.cell.inferred:
            result.notes.append("no verdict: an inferred setting")
            return
        if result.cell.starred and not base.imported:
            return  # other weights than the paper's; the note says so
        if result.metric in result.cell.reference:
            result.outcome = against_paper(values, result.cell.reference[result.metric])
            result.rule = "the paper's value, 2 % relative sd"
        return
    if base.imported:
        return  # references are measured with trained weights
    reference = load_references(result.cell.table, base.scale).get(result.cell.name)
    if reference is None:
        return
    if reference.experiment != experiment_digest(base):
        result.notes.append("no verdict: the committed reference was measured with another configuration")
        return
    fresh = [r.value for r in result.replicates if r.seed not in reference.seeds]
    if fresh:
        result.outcome = against_replicates(fresh, reference.values)
        result.rule = f"{len(reference.values)} committed replicates"

"""`repro check`: are the numbers still what they were? Fingerprints, and statistics against references."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from repro.cells import experiment_digest, resolve
from repro.results import references
from repro.results.collect import MARKS, Collection
from repro.results.fingerprint import Shared, differences, fingerprint
from repro.results.references import load_fingerprints, load_references
from repro.results.statistics import LEVEL, POWER_SHIFT, Outcome, table_false_alarms, table_holds, table_power
from repro.tables import Cell, Table


@dataclasses.dataclass(frozen=True)
class Line:
    """One cell's verdict: `holds`, `outside` or `skipped`, and one line that says why."""

    cell: str
    verdict: str
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """A check's verdicts and the exit code they ask for: 0 holds, 1 outside, 3 nothing comparable."""

    title: str
    lines: list[Line]
    exit_code: int
    rule: str


def check_fingerprints(
    table: Table,
    cells: Iterable[Cell],
    data_dir: Path,
    shared: Shared | None = None,
) -> Report:
    """Compute every cell's fingerprint at mini and compare it with the committed one.

    shared: see `fingerprint`; for several tables.
    """
    committed = load_fingerprints(table.name)
    shared = {} if shared is None else shared
    lines = []
    for cell in cells:
        reference = committed.get(cell.name)
        if reference is None:
            lines.append(Line(cell.name, "skipped", f"none in {references.fingerprint_file(table.name).name}"))
            continue
        resolved = resolve(cell, "mini")
        moved = differences(fingerprint(resolved, data_dir, shared), reference["values"])
        if reference["experiment"] != experiment_digest(resolved):
            moved.insert(0, "the resolved configuration is another one")
        text = "; ".join(moved) if moved else "unmoved"
        lines.append(Line(cell.name, "outside" if moved else "holds", text))
    rule = "every number within float tolerance of the committed fingerprint"
    return Report(f"{table.name}: fingerprints", lines, _code(lines), rule)


def check_statistics(collection: Collection, allow_stale: bool) -> Report:
    """Judge the collected values of a table against its references."""
    lines = []
    outcomes = []
    references = {} if collection.scale == "full" else load_references(collection.table.name, collection.scale)
    for result in collection.cells:
        name = result.cell.name
        outcome = result.outcome
        if result.stale and not allow_stale:
            text = "records made by other sources of repro; --allow-stale takes them"
            lines.append(Line(name, "skipped", text))
        elif outcome is None:
            lines.append(Line(name, "skipped", _why(result.notes, name in references, bool(result.replicates))))
        else:
            outcomes.append(outcome)
            text = (
                f"{outcome.fresh:.3f} against {outcome.reference:.3f}, band {outcome.low:.3f} to {outcome.high:.3f}, "
                f"p {outcome.p:.2g}, power {outcome.power:.0%} for {POWER_SHIFT:g} sd"
            )
            lines.append(Line(name, result.verdict, text))
    code = 3 if not outcomes else (0 if table_holds(outcomes) else 1)
    rule = (
        f"two-sided at {LEVEL:.0%} a cell; the table fails if a cell's p is under {LEVEL:.0%} / (number of cells), "
        f"here {LEVEL / max(len(outcomes), 1):.2g}, or if two cells lie outside{_table_power(outcomes)}"
    )
    return Report(f"{collection.table.name} at {collection.scale}: statistics", lines, code, rule)


def _table_power(outcomes: Sequence[Outcome]) -> str:
    """False alarms and power of the whole table's rule, where all cells are compared with replicates."""
    sizes = [outcome.sizes for outcome in outcomes if outcome.sizes]
    if not outcomes or len(sizes) < len(outcomes):
        return ""
    m, k = min(size[0] for size in sizes), min(size[1] for size in sizes)
    found = table_power(m, k, len(outcomes))
    return (
        f"; false alarms of the table at most {table_false_alarms(len(outcomes)):.1%}, "
        f"power {found:.0%} for one cell moved by {POWER_SHIFT:g} sd"
    )


def junit(reports: Sequence[Report]) -> str:
    """The reports as JUnit XML, one test case a cell. A failure only where the report's own rule fails."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        counts = {verdict: sum(line.verdict == verdict for line in report.lines) for verdict in ("outside", "skipped")}
        failed = report.exit_code == 1
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=report.title,
            tests=str(len(report.lines)),
            failures=str(counts["outside"] if failed else 0),
            skipped=str(counts["skipped"]),
        )
        for line in report.lines:
            case = ElementTree.SubElement(suite, "testcase", classname=report.title, name=line.cell)
            if line.verdict == "outside" and failed:
                ElementTree.SubElement(case, "failure", message=line.text)
            elif line.verdict == "outside":
                ElementTree.SubElement(case, "system-out").text = f"outside, within the table's rule: {line.text}"
            elif line.verdict == "skipped":
                ElementTree.SubElement(case, "skipped", message=line.text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _why(notes: Sequence[str], has_reference: bool, has_records: bool) -> str:
    reasons = [note for note in notes if not note.startswith(MARKS)]
    if reasons or not has_records:
        return "; ".join(reasons) or "no record"
    return "its seeds are the reference's own; make fresh ones" if has_reference else "no reference to compare with"


def _code(lines: Sequence[Line]) -> int:
    if any(line.verdict == "outside" for line in lines):
        return 1
    return 0 if any(line.verdict == "holds" for line in lines) else 3

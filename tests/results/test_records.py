from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from record_factory import make_record, resolved

from repro.errors import CorruptData
from repro.results.records import find_records, read_all, read_record, record_path, write_record


def test_round_trip_and_path(runs: Path) -> None:
    base = resolved()
    record = make_record(base, 1.25, range=2, git_revision="abc", git_dirty=True)
    path = write_record(runs, record)
    assert read_record(path) == record
    milestone = base.selection().milestones()[-1]
    run, evaluation = base.trajectory_hash[:16], base.evaluation_hash[:16]
    assert path.relative_to(runs).as_posix() == f"{run}/eval/{evaluation}/{milestone}/range2/record.json"
    assert path == record_path(runs, base.trajectory_hash, base.evaluation_hash, milestone, 2)
    assert list(find_records([runs])) == [path]
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_a_whole_record_is_never_overwritten(runs: Path) -> None:
    path = write_record(runs, make_record(resolved(), 1.0))
    before = path.read_bytes()
    assert write_record(runs, make_record(resolved(), 2.0)) == path
    assert path.read_bytes() == before


def _truncate(text: str) -> str:
    return text[: len(text) // 2]


def _digit(text: str) -> str:
    return text.replace('"value": 1.25', '"value": 1.24')


def _schema(text: str) -> str:
    return text.replace('"schema_version": 1', '"schema_version": 2')


def _field(text: str) -> str:
    return text.replace('"weights": "trained"', '"weights": "imported"')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "not a whole JSON file"),
        (lambda text: "", "not a whole JSON file"),
        (lambda text: "\x00\udcff", "not a whole JSON file"),
        (lambda text: "[1, 2]", "not a record of repro"),
        (lambda text: '{"fid": 1.9}', "not a record of repro"),
        (_digit, "was changed after it was written"),
        (_field, "was changed after it was written"),
        (_schema, "schema 2, this version reads 1"),
    ],
)
def test_a_bad_record_gives_one_line_that_names_it(runs: Path, damage: object, says: str) -> None:
    path = write_record(runs, make_record(resolved(), 1.25))
    text = path.read_text()
    bad = damage(text)  # type: ignore[operator]
    assert bad != text
    content = bad.encode(errors="surrogateescape")
    path.write_bytes(content)
    with pytest.raises(CorruptData) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_all([runs]) == ([], [str(caught.value)])
    assert path.read_bytes() == content
    # A new evaluation takes the name, and what was there is kept.
    assert read_record(write_record(runs, make_record(resolved(), 3.0))).metrics["digits FD"].value == 3.0
    kept = [p for p in path.parent.iterdir() if p.name.startswith("record.unusable-")]
    assert [p.read_bytes() for p in kept] == [content]


def test_a_sealed_record_of_other_fields_is_not_one_of_this_schema(runs: Path) -> None:
    import repro.results.records as module

    record = make_record(resolved(), 1.0)
    path = write_record(runs, record)
    for change in ({"surprise": 1}, {"seed": "zero"}, {"metrics": {"digits FD": 1.0}}):
        content = {**dataclasses.asdict(record), **change}
        path.write_text(json.dumps({**content, "checksum": module._checksum(content)}))
        with pytest.raises(CorruptData, match="not a record of this schema"):
            read_record(path)


def test_key_is_what_and_where() -> None:
    base = resolved()
    keys = {
        make_record(base, 1.0).key,
        make_record(base, 2.0).key,
        make_record(base, 1.0, range=1).key,
        make_record(base, 1.0, milestone_nimg=1000).key,
        make_record(base.with_seed(1), 1.0).key,
    }
    assert len(keys) == 4

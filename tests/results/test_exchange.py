"""Records of several clusters: packed, unpacked, and never silently replaced."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest
from record_factory import F_VP, make_record, resolved, write_values

from repro.cli import main
from repro.errors import CorruptData, MissingPrerequisite
from repro.results.exchange import export_records, import_records
from repro.results.records import find_records, read_record, write_record


def test_there_and_back(tmp_path: Path) -> None:
    paths = write_values(tmp_path / "a", F_VP, [1.0, 2.0, 3.0])
    write_values(tmp_path / "b", F_VP, [1.0])
    (tmp_path / "b" / "junk").mkdir()
    assert export_records([tmp_path / "a", tmp_path / "b"], tmp_path / "x.tar").written == 3
    result = import_records(tmp_path / "x.tar", tmp_path / "c")
    assert (result.written, result.known, result.conflicts, result.problems) == (3, 0, 0, [])
    for path in paths:
        assert (tmp_path / "c" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    again = import_records(tmp_path / "x.tar", tmp_path / "c")
    assert (again.written, again.known) == (0, 3)


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    write_values(tmp_path / "a", F_VP, [1.0, 2.0])
    for name in ("x.tar", "y.tar"):
        export_records([tmp_path / "a"], tmp_path / name)
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()


def test_conflicts_are_reported_and_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = write_values(tmp_path / "here", F_VP, [1.0])[0]
    write_values(tmp_path / "there", F_VP, [1.5, 2.0])
    content = here.read_bytes()
    assert main(["records", "export", str(tmp_path / "x.tar"), "--runs", str(tmp_path / "there")]) == 0
    assert main(["records", "import", str(tmp_path / "x.tar"), "--runs", str(tmp_path / "here")]) == 1
    out, err = capsys.readouterr()
    assert "1 records imported" in out and "digits FD 1.5" in err and "has digits FD 1" in err
    assert here.read_bytes() == content and len(list(find_records([tmp_path / "here"]))) == 2


def test_conflicts_within_what_is_exported_survive(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.5)):
        write_values(tmp_path / name, F_VP, [value])
    assert export_records([tmp_path / "a", tmp_path / "b"], tmp_path / "x.tar").written == 2
    result = import_records(tmp_path / "x.tar", tmp_path / "c")
    assert (result.written, result.conflicts) == (1, 1)


def test_other_provenance_is_no_conflict(tmp_path: Path) -> None:
    record = make_record(resolved(), 1.0)
    write_record(tmp_path / "a", record)
    write_record(tmp_path / "b", dataclasses.replace(record, created="2026-02-02T00:00:00+00:00"))
    export_records([tmp_path / "b"], tmp_path / "x.tar")
    assert import_records(tmp_path / "x.tar", tmp_path / "a").known == 1


def test_hostile_and_damaged_tars(tmp_path: Path) -> None:
    path = write_values(tmp_path / "a", F_VP, [1.0])[0]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        index = tarfile.TarInfo("index.json")
        index.size = len(b'{"count": 3}')
        archive.addfile(index, io.BytesIO(b'{"count": 3}'))
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in (("../../evil.json", b"{}"), ("../../fine.json", path.read_bytes())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    result = import_records(tmp_path / "x.tar", tmp_path / "deep" / "er" / "runs")
    assert result.written == 1 and len(result.problems) == 2
    assert [p for p in (tmp_path / "deep").rglob("*") if p.is_file()] == [*find_records([tmp_path / "deep/er/runs"])]
    assert read_record(next(find_records([tmp_path / "deep/er/runs"]))).metrics["digits FD"].value == 1
    content = (tmp_path / "x.tar").read_bytes()
    for size in (100, 600, 1300, 1600, 3000):
        (tmp_path / "x.tar").write_bytes(content[:size])
        with pytest.raises(CorruptData, match=r"x\.tar: not a"):
            import_records(tmp_path / "x.tar", tmp_path / "new")
    with pytest.raises(CorruptData, match="not a whole tar"):
        import_records(tmp_path / "a", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(MissingPrerequisite, match="no such file"):
        import_records(tmp_path / "none.tar", tmp_path / "new")
    with pytest.raises(MissingPrerequisite, match="no such folder"):
        export_records([tmp_path / "none"], tmp_path / "y.tar")


def test_an_edited_record_is_not_exported(tmp_path: Path) -> None:
    path = write_values(tmp_path / "a", F_VP, [1.0])[0]
    path.write_text(path.read_text().replace('"value": 1.0', '"value": 0.5'))
    result = export_records([tmp_path / "a"], tmp_path / "x.tar")
    assert result.written == 0 and "was changed" in result.problems[0]

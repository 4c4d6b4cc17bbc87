"""Records of several clusters in one folder: a tar of records, read as untrusted input."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from repro.errors import CorruptData, MissingPrerequisite
from repro.files import make_folder, write_atomic
from repro.results.records import Record, find_records, read_record, record_path, write_record

MAX_RECORD_BYTES = 2**24
INDEX = "index.json"
"""The first member: how many records follow, so that a file that was cut is noticed."""


@dataclasses.dataclass
class Exchange:
    """written: records that were packed or unpacked; known: that were there already; conflicts; a line a problem."""

    written: int = 0
    known: int = 0
    conflicts: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


def export_records(runs: Sequence[Path], file: Path) -> Exchange:
    """Write every whole record of some folders as one tar; equal records give equal bytes.

    Duplicates are packed once; those that contradict each other are both packed, so that the import can say so.
    """
    for folder in runs:
        if not folder.is_dir():
            raise MissingPrerequisite(f"{folder}: no such folder of runs")
    result = Exchange()
    contents: dict[str, bytes] = {}
    for folder in runs:
        for path in find_records([folder]):
            content = path.read_bytes()
            try:
                read_record(path)
            except CorruptData as error:
                result.problems.append(str(error))
                continue
            name = path.relative_to(folder).as_posix()
            if contents.get(name, content) != content:
                name = f"{name}.{sum(other.startswith(name) for other in contents)}"
            contents[name] = content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        members = [(INDEX, json.dumps({"count": len(contents)}).encode())]
        for name, content in [*members, *sorted(contents.items())]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    make_folder(file.parent)
    write_atomic(file, buffer.getvalue())
    result.written = len(contents)
    return result


def import_records(file: Path, runs: Path) -> Exchange:
    """Write the records of a tar into a folder of runs, each where its own content says that it belongs.

    Nothing is extracted by the names in the tar, and nothing that is there is overwritten.

    Raises:
        MissingPrerequisite: no such file.
        CorruptData: not a whole tar; records before the damage are not written either.
    """
    result = Exchange()
    records = list(_read(file, result))
    make_folder(runs)
    for record in records:
        path = record_path(runs, record.trajectory_hash, record.evaluation_hash, record.milestone_nimg, record.range)
        there = _existing(path)
        if there is None:
            write_record(runs, record)
            result.written += 1
        elif same(there, record):
            result.known += 1
        else:
            result.conflicts += 1
            result.problems.append(
                f"{record.cell} (seed {record.seed}, {record.milestone_nimg} images, range {record.range}): "
                f"{_values(record)}, but {path} has {_values(there)}"
            )
    return result


def same(first: Record, second: Record) -> bool:
    """Whether two records of one evaluation say the same: equal metrics on equal data and reference."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("key", "metrics", "data_manifest_sha256", "reference_sha256")
    )


def _values(record: Record) -> str:
    return ", ".join(f"{name} {metric.value:g}" for name, metric in record.metrics.items())


def _existing(path: Path) -> Record | None:
    try:
        return read_record(path) if path.exists() else None
    except CorruptData:
        return None


def _read(file: Path, result: Exchange) -> Iterator[Record]:
    if not file.exists():
        raise MissingPrerequisite(f"{file}: no such file")
    try:
        with tarfile.open(file, "r:") as archive, tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / "record.json"
            members = archive.getmembers()
            if not members or members[0].name != INDEX or members[0].size > MAX_RECORD_BYTES:
                raise CorruptData(f"{file}: not a file of `repro records export`")
            index = archive.extractfile(members[0])
            count = json.loads(index.read())["count"] if index else None
            if count != len(members) - 1:
                raise CorruptData(f"{file}: not a whole tar of records ({len(members) - 1} of {count})")
            for member in members[1:]:
                stream = archive.extractfile(member) if member.isreg() and member.size <= MAX_RECORD_BYTES else None
                if stream is None:
                    result.problems.append(f"{file}: {member.name!r} is no record")
                    continue
                scratch.write_bytes(stream.read())
                try:
                    yield read_record(scratch)
                except CorruptData as error:
                    result.problems.append(str(error).replace(str(scratch), f"{file}, {member.name!r}"))
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{file}: not a whole tar of records ({error})") from error

"""The record: the immutable JSON file that an evaluation leaves. The only module that knows its form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from repro.coercion import coerce
from repro.errors import CorruptData
from repro.files import make_folder, write_json
from repro.identity import SHORT

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number: value, n (generated images that it was computed from) and the protocol that defines it."""

    value: float
    n: int
    protocol: str


@dataclasses.dataclass(frozen=True)
class Record:
    """Everything about one evaluation: one trajectory, milestone and sampling range.

    Identity: `evaluation_hash` (which includes the trajectory's) says what was measured; `milestone_nimg` and `range`
    say where. Provenance: everything else. All sizes in images, all times in seconds.
    """

    cell: str
    """The cell that asked for it; others of the same hashes share it."""
    scale: str
    trajectory_hash: str
    evaluation_hash: str
    config: dict[str, Any]
    """The canonical resolved configuration that the hashes are of."""
    seed: int
    """Training seed: the replicate."""
    milestone_nimg: int
    nimg: int
    """Images seen when the weights were kept: the first step boundary at or after the milestone; of imported weights
    as far as their file tells, else 0."""
    range: int
    first_seed: int
    """Sampling seeds first_seed .. first_seed + num_samples - 1."""
    num_samples: int
    nfe: float
    metrics: dict[str, Metric]
    protocol: dict[str, Any]
    weights: str
    """`trained` here, or `imported`."""
    data_manifest_sha256: str
    reference_sha256: str
    sources_sha256: str
    git_revision: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    execution: dict[str, Any]
    threads: int
    world_size: int
    seconds: dict[str, float]
    created: str
    prompts_manifest_sha256: str = ""
    """Of the data whose captions the images follow."""
    imported: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of imported weights, of the network and of its guide: `source` (the file's published name), `sha256`, `kind`,
    `nimg` and `std`."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> tuple[str, int, int]:
        """What no two records of one set may share: (evaluation hash, milestone, range)."""
        return (self.evaluation_hash, self.milestone_nimg, self.range)


def record_path(runs: Path, trajectory: str, evaluation: str, milestone: int, k: int) -> Path:
    """`runs/<trajectory>/eval/<evaluation>/<milestone>/range<k>/record.json`; milestone in images."""
    return runs / trajectory[:SHORT] / "eval" / evaluation[:SHORT] / str(milestone) / f"range{k}" / "record.json"


def write_record(runs: Path, record: Record) -> Path:
    """Write a record atomically, sealed with a checksum of its content. A whole one that is there is left alone.

    What lies there and is no whole record of this evaluation is kept beside it, under a name that nothing reads.
    """
    path = record_path(runs, record.trajectory_hash, record.evaluation_hash, record.milestone_nimg, record.range)
    if path.exists():
        try:
            if read_record(path).key == record.key:
                return path
        except CorruptData:
            pass
        path.rename(path.with_name(f"record.unusable-{uuid.uuid4().hex[:8]}.json"))
    content = dataclasses.asdict(record)
    make_folder(path.parent)
    write_json(path, {**content, "checksum": _checksum(content)})
    return path


def read_record(path: Path) -> Record:
    """Read and verify a record.

    Raises:
        CorruptData: the file is truncated, of another program or schema, or was edited after it was written.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptData(f"{path}: not a whole JSON file ({error})") from None
    if not isinstance(content, dict) or "evaluation_hash" not in content:
        raise CorruptData(f"{path}: not a record of repro")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CorruptData(f"{path}: schema {content.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    if content.pop("checksum", None) != _checksum(content):
        raise CorruptData(f"{path}: was changed after it was written (its checksum does not match); it is not used")
    hints = _hints()
    try:
        metrics = {name: Metric(**metric) for name, metric in content.pop("metrics").items()}
        fields = {key: coerce(value, hints[key]) for key, value in content.items()}
        return Record(metrics=metrics, **fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptData(f"{path}: not a record of this schema ({error})") from None


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Record)


def find_records(runs: Iterable[Path]) -> Iterator[Path]:
    """Paths of all records under some runs folders, sorted."""
    for folder in runs:
        yield from sorted(folder.glob("*/eval/*/*/range*/record.json"))


def read_all(runs: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """All whole records, and one line for each file that is not."""
    records, problems = [], []
    for path in find_records(runs):
        try:
            records.append(read_record(path))
        except CorruptData as error:
            problems.append(str(error))
    return records, problems


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

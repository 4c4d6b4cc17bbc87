from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from record_factory import F_VP, write_values

from repro.cells import experiment_digest, resolve
from repro.errors import CorruptData, MissingPrerequisite
from repro.results import pin, references
from repro.tables import find_cell, load_table, table_names


def test_pinned_hashes_are_what_the_code_gives() -> None:
    pinned = references.load_hashes()
    assert pinned == pin.full_hashes()
    assert set(pinned) == {cell.name for name in table_names() for cell in load_table(name).computable}
    table2 = [entry["evaluation"] for name, entry in pinned.items() if name.startswith("edm/table2/")]
    assert len(set(table2)) == len(table2) == 48


COMMITTED = [
    (table, scale)
    for table in table_names()
    for scale in ("mini", "ci")
    if references.reference_file(table, scale).exists()
]


@pytest.mark.parametrize("table, scale", COMMITTED)
def test_committed_references_are_of_the_present_configuration(table: str, scale: str) -> None:
    found = references.load_references(table, scale)
    for name, reference in found.items():
        assert reference.experiment == experiment_digest(resolve(find_cell(name), scale)), name
        assert len(set(reference.seeds)) == len(reference.seeds) >= 5
        assert len(set(reference.values)) > 1 and all(map(math.isfinite, reference.values))
    if scale == "mini":
        loaded = load_table(table)
        cells = [cell for cell in loaded.select(None, list(loaded.mini_columns)) if not cell.reference_only]
        assert set(found) == {cell.name for cell in cells}


def test_no_file_is_no_reference(committed: Path) -> None:
    assert references.load_references("edm/table2", "mini") == {}
    assert references.load_fingerprints("edm/table2") == {}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"cells": []}',
        '{"cells": {"x": 1}}',
        '{"cells": {"x": {"experiment": "e", "seeds": [1, 2]}}}',
        '{"cells": {"x": {"experiment": "e", "seeds": [1, 2], "values": "12"}}}',
        '{"cells": {"x": {"experiment": "e", "seeds": [1, 2], "values": ["1", "2"]}}}',
        '{"cells": {"x": {"experiment": "e", "seeds": [1], "values": [1.0, 2.0]}}}',
        '{"cells": {"x": {"experiment": "e", "seeds": [1], "values": [1.0]}}}',
    ],
)
def test_a_malformed_file_is_named(committed: Path, content: str) -> None:
    path = committed / "mini.json"
    path.write_text(content)
    with pytest.raises(CorruptData) as caught:
        references.load_references("edm/table2", "mini")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_malformed_fingerprint_file_is_named(committed: Path) -> None:
    (committed / "fingerprints.json").write_text('{"cells": {"x": {"values": {}}}}')
    with pytest.raises(CorruptData, match="fingerprints.json: x has no experiment"):
        references.load_fingerprints("edm/table2")


def test_what_pin_writes_is_what_check_reads(committed: Path, runs: Path, monkeypatch: Any) -> None:
    values = [1.0, 1.1, 1.2, 1.3]
    write_values(runs, F_VP, values, first_seed=1000)
    arguments = ["references", "--scale", "mini", "--runs", str(runs)]
    with pytest.raises(MissingPrerequisite, match="has 4 replicates, needs 8"):
        pin.main(arguments)
    pin.main([*arguments, "--least", "4"])
    found = references.load_references("edm/table2", "mini")
    assert set(found) == {F_VP}
    assert found[F_VP].values == tuple(values) and found[F_VP].seeds == (1000, 1001, 1002, 1003)
    made = json.loads((committed / "mini.json").read_text())["made"]
    assert made["command"].endswith(
        "--seeds 4 --first-seed 1000; python -m repro.results.pin references edm/table2 --scale mini --least 4"
    )
    assert made["versions"]["torch"] and made["hardware"]["cores"]


def test_pin_needs_records(committed: Path, runs: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no records of edm/table2 at mini"):
        pin.main(["references", "--scale", "mini", "--runs", str(runs)])

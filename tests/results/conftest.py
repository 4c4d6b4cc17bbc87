from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.results import references


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that stands for the committed references; the cache of what was read is cleared around it."""
    folder = tmp_path / "committed"
    folder.mkdir()
    monkeypatch.setattr(references, "reference_file", lambda table, scale: folder / f"{scale}.json")
    monkeypatch.setattr(references, "fingerprint_file", lambda table: folder / "fingerprints.json")
    references.load_references.cache_clear()
    yield folder
    references.load_references.cache_clear()

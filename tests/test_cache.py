"""What is remembered between commands: equal to what composing gives, and never trusted when it is damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import repro.cells
from repro import assets, cache
from repro.cells import Resolved, resolve
from repro.tables import find_cell, load_table, table_names

CELL = "edm/table2/f/cifar10-cond-vp"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own, and nothing kept in this process."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    repro.cells._resolve.cache_clear()
    return tmp_path / "cache"


def again(cell: str, scale: str = "mini", bindings: tuple[str, ...] = ()) -> Resolved:
    """Resolve as another process would."""
    repro.cells._resolve.cache_clear()
    return resolve(find_cell(cell), scale, bindings)


@pytest.mark.parametrize("table", table_names())
@pytest.mark.parametrize("scale", ["full", "mini"])
def test_a_kept_cell_is_the_composed_one(table: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = load_table(table).computable[-1]
    first = again(cell.name, scale)
    monkeypatch.setattr(repro.cells, "_compose", lambda *args: pytest.fail("composed a second time"))
    second = again(cell.name, scale)
    assert first == second
    assert first.with_seed(7).evaluation_hash == second.with_seed(7).evaluation_hash
    assert second.selection() == first.selection()


def test_a_kept_cell_belongs_to_its_files_and_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    base = again(CELL)
    assert again(CELL, bindings=("Trajectory.loss_scale = 2",)).run != base.run
    assert again(CELL, scale="ci").run != base.run
    monkeypatch.setattr(assets, "sources_sha256", lambda: "0" * 64)
    assert cache.load("cell", "") is None
    composed: list[bool] = []
    real = repro.cells._compose
    monkeypatch.setattr(repro.cells, "_compose", lambda *args: composed.append(True) or real(*args))
    assert again(CELL) == base
    assert composed, "other sources, and nothing was composed"


@pytest.mark.parametrize("damage", [b"", b"{}", b"cut", b"\xff\xfe"])
def test_damage_costs_time_only(empty: Path, damage: bytes) -> None:
    base = again(CELL)
    (kept,) = empty.rglob("cell-*.json")
    content = kept.read_bytes()
    kept.write_bytes(damage if damage != b"cut" else content[: len(content) // 2])
    assert again(CELL) == base
    kept.write_bytes(content.replace(b'"mini"', b'"full"'))
    assert again(CELL) == base


def test_a_folder_that_cannot_be_written_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", "/proc/none")
    assert again(CELL) == again(CELL)


def test_nothing_is_remembered_of_an_error_or_of_none() -> None:
    with pytest.raises(ZeroDivisionError):
        cache.remember("x", "key", lambda: 1 // 0)
    assert cache.remember("x", "key", lambda: None) is None
    assert cache.remember("x", "key", lambda: 3) == 3
    assert cache.remember("x", "key", lambda: 4) == 3


def test_old_versions_are_forgotten(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(cache.KEPT_VERSIONS + 3):
        monkeypatch.setattr(assets, "sources_sha256", lambda number=number: f"{number:064x}"[::-1])
        cache.store("x", "key", number)
        assert cache.load("x", "key") == number
    assert len(list(empty.iterdir())) == cache.KEPT_VERSIONS


def test_collect_plan_and_a_typo_need_no_torch_once_cells_are_kept(tmp_path: Path) -> None:
    script = (
        "import sys, repro.cli\n"
        "code = repro.cli.main(sys.argv[1:])\n"
        "print(code, [name for name in ('torch', 'pandas') if name in sys.modules])\n"
    )

    def run(*words: str) -> str:
        command = [sys.executable, "-c", script, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[-1]

    collect = ("collect", "edm/table2", "--scale", "mini", "--rows", "f", "--runs", str(tmp_path))
    assert run(*collect).startswith("0 ['torch'")
    assert run(*collect) == "0 []"
    plan = ("plan", "edm2/table2", "--rows", "xs-cfg", "--runs", str(tmp_path))
    assert run(*plan).startswith("0 ['torch'")
    assert run(*plan) == "0 []", "a guide that was never trained has no snapshots to look for"
    assert run("show", "edm/table2/f/cifar10-cond-pv") == "2 []"
    assert run("reproduce", "edm/tabel2", "--runs", str(tmp_path)) == "2 []"

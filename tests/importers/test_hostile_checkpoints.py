"""Checkpoints that want something run, that lie about their sizes, or are damaged: one line, exit 2, nothing left."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_files as files
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.cli import main
from repro.errors import ReproError
from repro.importers import checkpoints
from repro.importers.sources import File

SAMPLES = Path(__file__).parent.parent / "golden" / "cases" / "checkpoints"
SNAPSHOT = SAMPLES / "edm_cond_edm_ddpmpp.pkl"
ZIP = SAMPLES / "dit_state_dict.pt"
LEGACY = SAMPLES / "uvit_legacy.pth"
SMALL = {"x_embedder.proj.weight": torch.zeros(4, 1, 1, 1)}


class Refused:
    """Imports bytes and returns the one line of the refusal; nothing may run or stay."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.marker = folder / "ran"

    def __call__(self, content: bytes, name: str = "net.pkl") -> str:
        path = self.folder / name
        path.write_bytes(content)
        code = main(["import", str(path), "--out", str(self.folder / "out")])
        shown = self.capsys.readouterr()
        assert code == 2, shown.err
        assert shown.err.startswith("repro: ") and shown.err.count("\n") == 1 and len(shown.err) < 700, shown.err
        assert "\x1b" not in shown.err and "Error:" not in shown.err
        assert [p.name for p in self.folder.iterdir()] == [name], "something was left, or ran"
        path.unlink()
        return shown.err


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def as_snapshot(value: Any) -> bytes:
    return pickle.dumps({"ema": value}, 4)


def as_zip(value: Any) -> bytes:
    return files.zip_of(collections.OrderedDict(SMALL, evil=value))


def as_legacy(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(collections.OrderedDict(SMALL, evil=value), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("container", [as_snapshot, as_zip, as_legacy])
def test_calls_are_named_and_not_made(container: Callable[[Any], bytes], refused: Refused) -> None:
    import builtins
    import importlib
    import runpy
    import subprocess
    import webbrowser

    command = f"touch {refused.marker}"
    code = f"open({str(refused.marker)!r}, 'w')"
    attacks = {
        f"{os.system.__module__}.system": Evil(os.system, command),
        "eval": Evil(builtins.eval, code),
        "exec": Evil(builtins.exec, code),
        "Popen": Evil(subprocess.Popen, command),
        "runpy": Evil(runpy.run_path, str(refused.marker)),
        "importlib.import_module": Evil(importlib.import_module, "this"),
        "webbrowser.open": Evil(webbrowser.open, "file:///"),
        "getattr": Evil(getattr, 1, "real"),
    }
    for name, attack in attacks.items():
        assert name in refused(container(attack)), name


def test_source_code_of_persistent_objects_is_not_run(refused: Refused) -> None:
    source = f"open({str(refused.marker)!r}, 'w').close()\n"
    with files.stand_ins() as (rebuild, _):
        for name in ("EDMPrecond", "eval", "system"):
            thing = files.Persistent(rebuild, name, {"_init_args": (), "_init_kwargs": {}}, source)
            refused(pickle.dumps({"ema": thing}, 4))
        hooked = files.network(rebuild, "EDMPrecond", {}, SMALL, ())
        hooked.meta["state"]["_forward_hooks"] = {0: "something"}
        assert "has hooks" in refused(pickle.dumps({"ema": hooked}, 4))
        older = files.network(rebuild, "EDMPrecond", {}, SMALL, ())
        older.meta["version"] = 5
        assert "persistence version 5" in refused(pickle.dumps({"ema": older}, 4))


def nested(content: bytes) -> bytes:
    """A snapshot whose one tensor's bytes are `content`."""

    class Bytes:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (content,)  # type: ignore[attr-defined]

    class Tensor:
        def __reduce__(self) -> Any:
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (Bytes(), 0, (1,), (1,), False, collections.OrderedDict())

    with files.stand_ins() as (rebuild, _):
        made = files.network(rebuild, "EDMPrecond", {}, {}, ())
        made.meta["state"]["_parameters"] = {"weight": Tensor()}
        return pickle.dumps({"ema": made}, 4)


def legacy_of(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_bytes_of_tensors_hold_one_storage_and_nothing_else(refused: Refused) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # storages with a type are what such files hold
        good = legacy_of(torch.zeros(1).storage())
    evil = pickle.dumps(Evil(os.system, f"touch {refused.marker}"), 2)
    again = pickle.dumps(Evil(torch.storage._load_from_bytes, good), 2)  # type: ignore[attr-defined]
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    version = pickle.dumps(1001, 2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    keys = pickle.dumps(["0"], 2)
    for parts in ((), (magic,), (magic, version), (magic, version, system)):
        assert "system" in refused(nested(b"".join(parts) + evil))
    assert "_load_from_bytes" in refused(nested(magic + version + system + again))
    assert "names" in refused(nested(magic + version + system + pickle.dumps(Evil(eval, "1"), 2) + keys))
    assert "something else than one storage" in refused(nested(legacy_of([1])))
    assert "bytes follow the last storage" in refused(nested(good + b"more"))
    assert "truncated" in refused(nested(good[:-1]))
    refused(nested(files.zip_of({"a": torch.zeros(1)})))


LENGTH = struct.pack("<Q", 2**62)
PICKLES = {
    "a name that is never called": (b"\x80\x04cos\nsystem\n0N.", "os.system"),
    "a dotted name": (b"\x80\x04ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
    "a name of Python 2": (b"\x80\x02c__builtin__\neval\n.", "__builtin__.eval"),
    "a name by way of the memo": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.", "os.system"),
    "BUILD of a module": (b"\x80\x04ctorch.nn.modules.container\nModuleDict\n}\x8c\x09__class__N\x75b.", ""),
    "BUILD of an OrderedDict": (b"\x80\x04ccollections\nOrderedDict\n)R}\x8c\x09__class__Nsb.", "takes none"),
    "a pair as a state": (b"\x80\x04ccollections\nOrderedDict\n)R}}\x86b.", "takes none"),
    "INST": (b"\x80\x04(ios\nsystem\n.", "0x69"),
    "OBJ": (b"\x80\x04(o.", "0x6f"),
    "NEWOBJ_EX": (b"\x80\x04\x92.", "0x92"),
    "EXT1": (b"\x80\x04\x82\x01.", "0x82"),
    "a persistent id": (b"\x80\x04\x8c\x01xQ.", "persistent id"),
    "a second pickle": (b"\x80\x04N.\x80\x04N.", "follow the end"),
    "gigantic bytes": (b"\x80\x04\x8e" + LENGTH + b"abc.", "truncated"),
    "gigantic text": (b"\x80\x04\x8d" + LENGTH + b"abc.", "truncated"),
    "a gigantic frame": (b"\x80\x04\x95" + LENGTH + b"N.", "truncated"),
    "a gigantic memo": (b"\x80\x04Nr\xff\xff\xff\xff.", "memo index 4294967295"),
    "an unset memo": (b"\x80\x04h\x05.", "memo index 5 was never set"),
    "a memo of what was replaced": (b"\x80\x04]\x94h\x00a.", "contains itself"),
    "a million marks": (b"\x80\x04" + b"(" * 10**6 + b".", "nested"),
    "deep containers": (b"\x80\x04N" + b"\x85" * 10**5 + b".", "nested"),
    "a key twice": (b"\x80\x04}(\x8c\x01aN\x8c\x01aNu.", "set twice"),
    "an unhashable key": (b"\x80\x04}]Ns.", "dict key"),
    "no network": (b"\x80\x04}\x8c\x03emaNs.", "without a network"),
    "protocol 0": (b"cos\nsystem\n(S'x'\ntR.", "protocol 0 or 1"),
    "an empty file": (b"", "an empty file"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    "a numpy array": (b"\x93NUMPY\x01\x00", "numpy array"),
    "escapes in a name": (b"\x80\x04c\x1b[31m" + b"x" * 300 + b"\nf\n.", "x1b"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles(name: str, refused: Refused) -> None:
    content, word = PICKLES[name]
    assert word in refused(content)


def entries(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def packed(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zips(refused: Refused) -> None:
    parts = entries(ZIP.read_bytes())
    folder = parts[0][0].partition("/")[0]
    assert "compressed" in refused(packed(parts, zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(packed([(f"{folder}/data.pkl", b"\0" * 10**7)], zipfile.ZIP_DEFLATED))  # a bomb
    assert "twice" in refused(packed([*parts, parts[0]]))
    assert "without data.pkl" in refused(packed([p for p in parts if not p[0].endswith("data.pkl")]))
    assert "in one folder" in refused(packed([*parts, ("other/data.pkl", b"")]))
    assert "in one folder" in refused(packed([*parts, ("data.pkl", b"")]))
    for name in ("../data.pkl", "/etc/passwd", "a\\b/data.pkl", "C:/data.pkl", f"{folder}/../../x"):
        assert "an entry of the name" in refused(packed([*parts, (name, b"")])), name
    assert "holds code" in refused(packed([*parts, (f"{folder}/constants.pkl", b"")]))
    others = [part for part in parts if "byteorder" not in part[0]]
    assert "little-endian" in refused(packed([*others, (f"{folder}/byteorder", b"big")]))
    assert "truncated, or something follows" in refused(ZIP.read_bytes() + b"PK")
    assert "is truncated" in refused(ZIP.read_bytes()[:-30])
    shorter = [(name, content[:-4] if name.endswith("/data/3") else content) for name, content in parts]
    assert "are declared" in refused(packed(shorter))
    assert "is not in the file" in refused(packed([p for p in parts if not p[0].endswith("/data/3")]))
    junk = bytearray(ZIP.read_bytes())
    at = junk.index(dict(parts)[f"{folder}/data/3"])
    junk[at] ^= 1
    (refused.folder / "junk.pt").write_bytes(junk)
    with pytest.raises(ReproError, match="data/3 is damaged"):
        look(refused.folder / "junk.pt")


def test_sizes_and_views_that_lie(refused: Refused) -> None:
    """The arguments of a tensor, changed in the pickle of a real file."""

    class Tensor:
        def __init__(self, *view: Any) -> None:
            self.view = view

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                torch.zeros(4).storage(),
                *self.view,
                False,
                collections.OrderedDict(),
            )

    for view in (
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**15,), (0,)),
        (0, (2**62, 2**62), (0, 0)),
        (0, (2, 2), (1,)),
        (0, (True,), (1,)),
        (0, (2.0,), (1,)),
        (2**70, (1,), (1,)),
        (0, (1,) * 60, (1,) * 60),
        (0, "ab", "ab"),
    ):
        message = refused(files.zip_of({"x_embedder.proj.weight": Tensor(*view)}))
        assert "reaches outside" in message or "a tensor of sizes" in message, view


def test_other_files_than_regular_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "nothing"):
        assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith("repro: ")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repro.importers.folders._write", full)
    assert main(["import", str(SNAPSHOT), "--out", str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(SNAPSHOT.read_bytes())
    with File(path) as source:
        path.write_bytes(SNAPSHOT.read_bytes() + b"x")
        with pytest.raises(ReproError, match="was changed while it was read"):
            source.check_unchanged()


def look(path: Path) -> list[tuple[str, bytes]]:
    """All that a file gives, tensors included."""
    with File(path) as source:
        found = checkpoints.read(source, path.name)
        return [(key, item.read().to(torch.float32).numpy().tobytes()) for key, item in found.state.items()]


@pytest.mark.parametrize("sample", [SNAPSHOT, ZIP, LEGACY], ids=lambda path: path.name)
def test_every_truncation_is_refused(sample: Path, tmp_path: Path) -> None:
    content = sample.read_bytes()
    path = tmp_path / sample.name
    for end in range(0, len(content), max(1, len(content) // 100)):
        path.write_bytes(content[:end])
        with pytest.raises(ReproError):
            look(path)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_damage_is_the_one_line_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Flipped and lost bytes: read to the end or refused, never another exception; a zip's weights are never others."""
    sample = data.draw(st.sampled_from([SNAPSHOT, ZIP, LEGACY, SAMPLES / "edm_training_state.pt"]))
    content = bytearray(sample.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 3)) == 0:
        at = data.draw(st.integers(0, len(content) - 1))
        del content[at : at + data.draw(st.integers(1, 2000))]
    path = tmp_path_factory.getbasetemp() / sample.name
    path.write_bytes(content)
    try:
        found = look(path)
    except ReproError as error:
        assert "\n" not in str(error)
        return
    if sample.suffix == ".pt":
        assert {value for _, value in found} <= {value for _, value in look(sample)}

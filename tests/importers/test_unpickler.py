"""Hostile and broken pickles: each is refused in one line, and nothing runs."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import CorruptData
from repro.importers.numpy_records import NUMPY_GLOBALS, as_array
from repro.importers.unpickler import Call, Persistent, load, loads

GOLDEN = Path(__file__).parent.parent / "golden" / "cases" / "metrics" / "formats"


def read(data: bytes, allowed: Any = NUMPY_GLOBALS, **options: Any) -> Any:
    return loads(data, allowed, "file.pkl", **options)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol: int) -> None:
    value = {"a": [1, -2, 2**40, 1.5, None, True], "b": ("x", b"\x00\xff", ()), "c": {7: {}}}
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_records(protocol: int, order: Any) -> None:
    for dtype in ("<f8", "<f4", ">f8"):
        array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
        record = read(pickle.dumps(array, protocol))
        assert isinstance(record, Call)
        assert np.array_equal(as_array(record, "file"), array)


def test_published_files_of_both_numpys() -> None:
    with np.load(GOLDEN / "expected.npz") as expected:
        for name in ("edm2.pkl", "edm2_numpy1.pkl"):
            value = read((GOLDEN / name).read_bytes())
            assert value["num_images"] == expected["num_images"]
            assert np.array_equal(as_array(value["fd_dinov2"]["sigma"], name), expected["sigma_dino"])


class Evil:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_is_refused_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    for function in (os.system, eval, exec, subprocess.Popen, getattr, Path):
        data = pickle.dumps({"mu": Evil(function, f"touch {tmp_path / 'ran'}")}, protocol)
        with pytest.raises(CorruptData, match=r"file\.pkl: names .* no use for \(at byte \d+\); nothing of it was run"):
            read(data)
    assert not (tmp_path / "ran").exists()


ONE = b"\x80\x04"
LONG = struct.pack("<Q", 2**62)
HOSTILE = {
    "a global never called": ONE + b"cos\nsystem\n0N.",
    "a dotted name": ONE + b"cnumpy\ndtype.__class__\n.",
    "a module that only begins alike": ONE + b"cnumpy_evil\ndtype\n.",
    "a name out of a call": ONE + b"c_codecs\nencode\n\x8c\x02os\x8c\x06latin1\x86R\x8c\x06system\x93.",
    "another codec": ONE + b"c_codecs\nencode\n\x8c\x02os\x8c\x05rot13\x86R.",
    "INST": ONE + b"(ios\nsystem\n.",
    "OBJ": ONE + b"(cnumpy\ndtype\no.",
    "EXT1": ONE + b"\x82\x01.",
    "NEWOBJ_EX": ONE + b"cnumpy\ndtype\n)}\x92.",
    "a call of a call": ONE + b"cnumpy\ndtype\n)R)R.",
    "a call with a list": ONE + b"cnumpy\ndtype\n]R.",
    "a state for a global": ONE + b"cnumpy\ndtype\n}b.",
    "a state for a dict": ONE + b"}}b.",
    "a second state": ONE + b"cnumpy\ndtype\n)R}b}b.",
    "a persistent id": ONE + b"\x8c\x01xQ.",
    "PERSID": ONE + b"Pabc\n.",
    "an unset memo": ONE + b"h\x07.",
    "a huge memo index": ONE + b"Nr\xff\xff\xff\xff.",
    "an empty stack": ONE + b".",
    "two values": ONE + b"NN.",
    "an open mark": ONE + b"(N.",
    "a missing mark": ONE + b"Nt.",
    "below the mark": ONE + b"N(R.",
    "trailing data": ONE + b"N.N.",
    "protocol 0": b"I1\n.",
    "protocol 9": b"\x80\x09N.",
    "an unhashable key": ONE + b"}]Ns.",
    "a float key": ONE + b"}G\x7f\xf8\x00\x00\x00\x00\x00\x00Ns.",
    "a record as key": ONE + b"}cnumpy\ndtype\nNs.",
    "items of a list": ONE + b"]NNs.",
    "appending to a dict": ONE + b"}Na.",
    "bad UTF-8": ONE + b"\x8c\x01\xff.",
    "a list in itself": ONE + b"]\x94h\x00a.",
    "two lists in each other": ONE + b"]\x94]\x94h\x00ah\x01\x86h\x00h\x01a\x86.",
    "deep tuples": ONE + b"N" + b"\x85" * 100_000 + b".",
    "a million marks": ONE + b"(" * 1_000_000 + b".",
    "POP": ONE + b"N0N.",
    "DUP": ONE + b"N2\x86.",
    "no file": b"",
    "HTML": b"<!DOCTYPE html>",
    **{
        f"a huge length of {name}": ONE + code + LONG + b"abc."
        for name, code in (
            ("BINBYTES8", b"\x8e"),
            ("BINUNICODE8", b"\x8d"),
            ("BYTEARRAY8", b"\x96"),
            ("FRAME", b"\x95"),
        )
    },
    "a huge length of BINBYTES": ONE + b"B\xff\xff\xff\xffabc.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    with pytest.raises(CorruptData) as found:
        read(HOSTILE[name])
    message = str(found.value)
    assert "\n" not in message and len(message) < 300


def test_doubling_takes_no_time() -> None:
    """60 tuples, each with the one before twice: 2^60 leaves."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
    assert len(read(ONE + b"(N\x85\x94" + steps + b"t.")) == 61


def test_terminal_escapes_are_quoted_and_cut() -> None:
    data = ONE + b"c" + b"\x1b[31m" * 100 + b"\nx\n."
    with pytest.raises(CorruptData) as found:
        read(data)
    assert "\x1b" not in str(found.value) and len(str(found.value)) < 250


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_damage_is_the_one_line_error(data: Any) -> None:
    """Truncations and flipped bytes of a real file: read or refused, never anything else."""
    content = bytearray((GOLDEN / "edm2.pkl").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = read(bytes(content))
        for part in value.values() if isinstance(value, dict) else ():
            if isinstance(part, dict):
                for entry in part.values():
                    as_array(entry, "file")
    except CorruptData as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise(content: bytes) -> None:
    try:
        read(ONE + content)
    except CorruptData:
        pass


def test_truncation_at_every_byte() -> None:
    content = (GOLDEN / "edm2_numpy1.pkl").read_bytes()
    for end in range(len(content)):
        with pytest.raises(CorruptData):
            read(content[:end])


def test_persistent_ids_and_sequences_where_asked_for() -> None:
    two = pickle.dumps(1, 2) + pickle.dumps(collections.OrderedDict(a=2), 2)
    first, end = load(two, (), "file")
    second, last = load(two, [("collections", "OrderedDict")], "file", offset=end)
    assert (first, second, last) == (1, {"a": 2}, len(two))
    found = read(ONE + b"\x8c\x01xQ.", persistent=True)
    assert isinstance(found, Persistent) and found.id == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "state", (1, (10**9, 10**9), *c.state[2:])), "bytes do not make"),
        (lambda c: setattr(c, "state", (1, (-3, -4), *c.state[2:])), "not an array"),
        (lambda c: setattr(c, "state", (1, (True,), *c.state[2:])), "not an array"),
        (lambda c: setattr(c, "state", None), "not an array"),
        (lambda c: setattr(c.state[2], "args", ("O", False, True)), "other elements"),
        (lambda c: setattr(c.state[2], "state", (3, "<", None, ("a",), None, -1, -1, 0)), "with fields"),
        (lambda c: setattr(c.state[2], "state", None), "byte order"),
    ],
)
def test_records_that_are_no_arrays(change: Any, message: str) -> None:
    record = read(pickle.dumps(np.zeros((3, 4)), 4))
    change(record)
    with pytest.raises(CorruptData, match=f"file: .*{message}"):
        as_array(record, "file")

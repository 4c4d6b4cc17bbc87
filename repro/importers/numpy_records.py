"""Numpy arrays out of the inert records that `repro.importers.unpickler` makes of pickles."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.errors import CorruptData
from repro.importers.sources import Part
from repro.importers.unpickler import Call, Global, Name

NUMPY_GLOBALS: frozenset[Name] = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        ),
    }
)
"""What pickles of numpy arrays and numbers name, by numpy 1 and numpy 2, in protocols 2 to 5."""


def as_array(value: Any, where: str, letters: Collection[str] = ("f4", "f8")) -> npt.NDArray[Any]:
    """A numpy array out of the record of one.

    Args:
        value: what `loads` returned for it.
        where: name of the file and of the entry, for messages.
        letters: element types that may occur.

    Raises:
        CorruptData: not the record of an array of such elements, or sizes that contradict each other.
    """
    name = value.function.name if isinstance(value, Call) else ""
    if name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, fortran, content = value.state
    elif name == "_frombuffer" and len(value.args) == 4 and value.args[3] in ("C", "F"):
        content, kind, shape, order = value.args
        fortran = order == "F"
    else:
        raise CorruptData(f"{where}: not an array")
    dtype = _as_dtype(kind, where, letters)
    if isinstance(content, Part):
        content = content.read(0, content.size)
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and type(content) is bytes):
        raise CorruptData(f"{where}: not an array")
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != len(content):
        raise CorruptData(f"{where}: {len(content)} bytes do not make an array of shape {str(shape)[:60]}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _as_dtype(value: Any, where: str, letters: Collection[str]) -> np.dtype[Any]:
    is_dtype = isinstance(value, Call) and value.function == Global("numpy", "dtype") and value.args
    if not is_dtype or value.args[0] not in letters:
        raise CorruptData(f"{where}: an array of other elements than {', '.join(letters)}")
    state = value.state
    if not (isinstance(state, tuple) and len(state) >= 8 and state[1] in ("<", ">", "|")):
        raise CorruptData(f"{where}: an element type without byte order")
    if any(part is not None for part in state[2:5]):
        raise CorruptData(f"{where}: an element type with fields")
    return np.dtype(value.args[0]).newbyteorder("<" if state[1] == "|" else state[1])


def as_number(value: Any, where: str) -> float:
    """A Python number out of the record of a numpy scalar (float32 or float64)."""
    if not (isinstance(value, Call) and value.function.name == "scalar" and len(value.args) == 2):
        raise CorruptData(f"{where}: not a number")
    dtype = _as_dtype(value.args[0], where, ("f4", "f8"))
    content = value.args[1]
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise CorruptData(f"{where}: not a number")
    return float(np.frombuffer(content, dtype)[0])

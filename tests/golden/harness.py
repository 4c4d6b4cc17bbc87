"""Golden cases: files of inputs and outputs that a paper's published implementation computed.

A case is an npz file: ``meta`` (JSON text: kind, name, config, params, tolerance, compare, ...), ``in/<name>`` and
``out/<name>`` arrays, and ``state/<key>`` for weights that do not follow from their key (`seeded_value`).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repro import importers

Array = npt.NDArray[Any]
# Outputs that are compared as a whole even where the case says "first_axis": gradients, totals and scalars.
WHOLE = ("grad/", "grad_norms", "total")


def find_cases(root: Path) -> list[Path]:
    """All case files under root, without those in folders named `formats`."""
    return sorted(p for p in root.rglob("*.npz") if "formats" not in p.relative_to(root).parts[:-1])


def seeded_value(key: str, shape: Sequence[int]) -> Array:
    """The weight that belongs to a published key: drawn from a generator that the key seeds. float32."""
    rng = np.random.default_rng(zlib.crc32(key.encode("utf-8")))
    value = np.asarray(rng.standard_normal(tuple(shape), dtype=np.float32))
    if len(shape) >= 2:
        value = value / np.float32(math.sqrt(math.prod(shape[1:])))
    elif len(shape) == 0:
        value = np.float32(0.5) + np.float32(0.1) * value
    elif key.endswith(".weight"):
        value = 1 + np.float32(0.1) * value
    else:
        value = np.float32(0.1) * value
    return np.asarray(value, dtype=np.float32)


class Case:
    """One file, and the record of which of its outputs were compared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as data:
            self.arrays: dict[str, Array] = {key: data[key] for key in data.files if key != "meta"}
            self.meta: dict[str, Any] = json.loads(str(data["meta"]))
        self.outputs = {key.removeprefix("out/") for key in self.arrays if key.startswith("out/")}
        self.compared: set[str] = set()

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the published name (settings of the case, which start with an underscore, left out)."""
        return {key: value for key, value in self.meta["config"].items() if not key.startswith("_")}

    def input(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"in/{name}"].copy())

    def optional(self, name: str) -> Tensor | None:
        return self.input(name) if f"in/{name}" in self.arrays else None

    def state(self) -> dict[str, Tensor]:
        """The published state dict, in its order."""
        state = {}
        for key, shape, source in self.meta["params"]:
            value = seeded_value(key, shape) if source == "seeded" else self.arrays[f"state/{key}"]
            state[key] = torch.from_numpy(np.array(value, dtype=np.float32)).reshape(shape)
        return state

    def network(self) -> nn.Module:
        """The case's network, built by the importer; its keys, their order and its size are those published."""
        spec = self.meta.get("net", self.meta)
        config = {key: value for key, value in spec["config"].items() if not key.startswith("_")}
        state = self.state()
        net = importers.build("edm", spec["name"], config, state)
        assert list(net.state_dict()) == list(state), "keys in another order than published"
        assert sum(p.numel() for p in net.parameters()) == self.meta["num_params"]
        return net

    def check(self, name: str, value: Tensor | Array | float, tolerance: float | None = None) -> None:
        """Compare one output. `tolerance` replaces the case's, relative to the largest absolute expected value."""
        expected = np.asarray(self.arrays[f"out/{name}"], dtype=np.float64)
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        array = np.asarray(array, dtype=np.float64)
        assert array.shape == expected.shape, f"{name}: shape {array.shape}, expected {expected.shape}"
        self.compared.add(name)
        mode = self.meta.get("compare", "whole")
        limit = self.meta["tolerance"] if tolerance is None else tolerance
        if mode == "exact":
            assert np.array_equal(array, expected), f"{name}: not equal"
        elif mode == "first_axis" and expected.ndim and not name.startswith(WHOLE):
            for i, (row, expected_row) in enumerate(zip(array, expected, strict=True)):
                _close(f"{name}[{i}]", row, expected_row, limit)
        else:
            assert mode in ("whole", "first_axis"), f"unknown comparison {mode!r}"
            _close(name, array, expected, limit)

    def check_entries(self, name: str, value: Tensor | Array, relative: float) -> None:
        """Compare one output entry by entry with a relative tolerance."""
        expected = np.asarray(self.arrays[f"out/{name}"], dtype=np.float64)
        array = np.asarray(value, dtype=np.float64)
        assert array.shape == expected.shape, f"{name}: shape {array.shape}, expected {expected.shape}"
        self.compared.add(name)
        np.testing.assert_allclose(array, expected, rtol=relative, atol=0, err_msg=name)

    def finish(self) -> None:
        """Fail if nothing, or not everything, was compared."""
        assert self.compared, "nothing was compared"
        assert self.compared == self.outputs, f"never compared: {sorted(self.outputs - self.compared)}"


Runner = Callable[[Case], None]


def _close(name: str, value: Array, expected: Array, tolerance: float) -> None:
    finite = np.isfinite(expected)
    assert np.array_equal(np.where(finite, 0, value), np.where(finite, 0, expected), equal_nan=True), (
        f"{name}: infinities or NaN differ"
    )
    assert np.isfinite(value[finite]).all(), f"{name}: not finite"
    if not finite.any():
        return
    error = np.abs(value[finite] - expected[finite]).max()
    scale = np.abs(expected[finite]).max()
    assert error <= tolerance * scale, f"{name}: differs by {error:.3g}, {tolerance:g} of {scale:.3g} is allowed"


class RecordedDraws:
    """A `Draws` that returns recorded numbers in order and insists on their kind, shape and purpose.

    entries: (purpose, kind or None where the case does not record it, tensor).
    """

    def __init__(self, entries: Sequence[tuple[str, str | None, Tensor]]) -> None:
        self._entries = list(entries)

    def rand(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._next("rand", shape, purpose)

    def randn(self, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        return self._next("randn", shape, purpose)

    def randint(self, high: int, shape: Sequence[int], purpose: str, batch_axis: int = 0) -> Tensor:
        values = self._next("randint", shape, purpose)
        assert int(values.max()) < high
        return values

    def _next(self, kind: str, shape: Sequence[int], purpose: str) -> Tensor:
        assert self._entries, f"a draw ({kind}, {purpose}) more than recorded"
        recorded_purpose, recorded_kind, values = self._entries.pop(0)
        assert purpose == recorded_purpose
        assert recorded_kind is None or recorded_kind.partition("(")[0] == kind
        assert list(shape) == list(values.shape)
        return values

    def finish(self) -> None:
        assert not self._entries, f"{len(self._entries)} recorded draws were not made"


class RecordedNoise:
    """A `randn_like` for samplers: entry i is the noise of step i; without a record, a noise that is never used."""

    def __init__(self, noise: Tensor | None) -> None:
        self._noise = noise
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self._noise is None:
            return torch.zeros_like(x)
        return self._noise[self.calls - 1].to(x.dtype)

"""Published checkpoints into the project's own modules, from constructor arguments and state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from repro.importers import edm, edm2, scalelong, udit

_FAMILIES = {"edm": edm.build, "edm2": edm2.build, "udit": udit.build, "scalelong": scalelong.build}


def build(family: str, name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A published network as one of ours, in evaluation mode on the CPU, float32.

    family: ``edm``, ``edm2``, ``scalelong`` (U-ViT) or ``udit`` (DiT too). name: published class name. config:
    published constructor arguments, defaults left out. state_dict: published parameters and buffers. ValueError for an
    unknown name or argument, and for a key that is missing, left over or of another shape (the first one is named).
    """
    if family not in _FAMILIES:
        raise ValueError(f"unknown checkpoint family {family!r}; known: {', '.join(_FAMILIES)}")
    return _FAMILIES[family](name, config, state_dict)

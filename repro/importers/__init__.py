"""Published checkpoints into the project's own modules, without running anything that is in them.

`build` takes constructor arguments and a state dict; `repro.importers.checkpoints.read` takes those out of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from repro.importers import edm, edm2, udit
from repro.importers.loading import load_exactly

FAMILIES: dict[str, ModuleType] = {"edm": edm, "edm2": edm2, "udit": udit}
"""Family -> its module: `describe(name, config)` gives our network, and, where keys or forms differ from ours,
`released_key(key)` the key that we have and `check_form(net, state)` a refusal of what cannot be loaded."""


def family_of(family: str) -> ModuleType:
    """The module of a family. ValueError for an unknown one."""
    if family not in FAMILIES:
        raise ValueError(f"unknown checkpoint family {family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[family]


def build(family: str, name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A published network as one of ours, in evaluation mode on the CPU, float32.

    family: ``edm``, ``edm2`` or ``udit`` (DiT too). name: published class name. config: published constructor
    arguments, defaults left out. state_dict: published parameters and buffers, of any floating type; one within a
    training checkpoint is found under its key `ema`. ValueError for an unknown name or argument, and for a key that is
    missing, left over or of another shape (the first one is named); UsageError for weights of a fused form.
    """
    module = family_of(family)
    described = module.describe(name, config)
    if isinstance(averaged := state_dict.get("ema"), Mapping):
        state_dict = averaged
    state = renamed(module, state_dict)
    net = described.build()
    if hasattr(module, "check_form"):
        module.check_form(net, state)
    load_exactly(net, described.node, state)
    return net.eval()


def renamed(module: ModuleType, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict under the keys that our network has. ValueError where two of its keys are one of ours."""
    rename = getattr(module, "released_key", str)
    found: dict[str, Any] = {}
    for key, value in state.items():
        if (own := rename(key)) in found:
            raise ValueError(f"the checkpoint has {key!r} under two names")
        found[own] = value
    return found

"""Files in the published formats, made of weights that a test gives: what the papers' training programs would save.

The modules that such files name (`torch_utils.persistence`, `dnnlib.util`) do not exist here: stand-ins are known to
`sys.modules` while a file is written, so that `pickle` and `torch.save` write the names.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "import os\nos.system('touch /tmp/ran')\nraise SystemExit('the source of a checkpoint was run')\n"
HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


@contextlib.contextmanager
def stand_ins() -> Iterator[tuple[Any, Any]]:
    """(the function that rebuilds persistent objects, EasyDict), importable under their published names."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("a persistent object was rebuilt")

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    names = {"torch_utils": types.ModuleType("torch_utils"), persistence.__name__: persistence,
             "dnnlib": types.ModuleType("dnnlib"), util.__name__: util}  # fmt: skip
    sys.modules.update(names)
    try:
        yield _reconstruct_persistent_obj, EasyDict
    finally:
        for name in names:
            del sys.modules[name]


class Persistent:
    """Pickles as the call that rebuilds a persistent object."""

    def __init__(self, rebuild: Any, class_name: str, state: dict[str, Any], source: str = SOURCE) -> None:
        self.rebuild = rebuild
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> Any:
        return self.rebuild, (self.meta,)


def network(
    rebuild: Any, class_name: str, config: Mapping[str, Any], state: Mapping[str, Tensor], buffers: tuple[str, ...]
) -> Persistent:
    """A network object with some state dict. buffers: last parts of the keys that are no parameters."""
    tree: dict[str, Any] = {}
    for key, value in state.items():
        *path, leaf = key.split(".")
        here = tree
        for part in path:
            here = here.setdefault(part, {})
        here[leaf] = value
    return _module(rebuild, class_name, tree, buffers, {"_init_args": (), "_init_kwargs": dict(config)})


def _module(rebuild: Any, name: str, tree: dict[str, Any], buffers: tuple[str, ...], more: dict[str, Any]) -> Any:
    inner = {key: value for key, value in tree.items() if isinstance(value, dict)}
    own = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    modules = {key: _module(rebuild, "Part", value, buffers, {}) for key, value in inner.items()}
    state: dict[str, Any] = {
        "training": False,
        "_parameters": {k: nn.Parameter(v, requires_grad=False) for k, v in own.items() if k not in buffers},
        "_buffers": {key: value for key, value in own.items() if key in buffers},
        "_non_persistent_buffers_set": set(),
        **{hook: collections.OrderedDict() for hook in HOOKS},
        "_is_full_backward_hook": None,
        "_modules": collections.OrderedDict(modules),
        "skip_scale": np.sqrt(0.5),  # numbers of numpy are among the attributes
        "map_label": None,
        **more,
    }
    if set(modules) and all("x" in key and key[0].isdigit() for key in modules):  # `enc` and `dec` are plain containers
        made = nn.ModuleDict()
        made.__dict__["_modules"] = modules
        return made
    return Persistent(rebuild, name, state)


BUFFERS = ("resample_filter", "freqs", "phases", "u")


def edm_snapshot(
    path: Path, class_name: str, config: Mapping[str, Any], state: Mapping[str, Tensor], protocol: int = 4
) -> Path:
    """`network-snapshot-*.pkl` of EDM."""
    with stand_ins() as (rebuild, _):
        loss = Persistent(rebuild, "EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}})
        content = {
            "ema": network(rebuild, class_name, config, state, BUFFERS),
            "loss_fn": loss,
            "augment_pipe": None,
            "dataset_kwargs": {"class_name": "os.system", "path": "touch ran", "use_labels": True},
        }
        path.write_bytes(pickle.dumps(content, protocol))
    return path


def edm2_snapshot(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], protocol: int = 4) -> Path:
    """`*-<kimg>-<std>.pkl` of EDM2: an EasyDict, weights and buffers in float16."""
    with stand_ins() as (rebuild, easy):
        half = {key: value.half() for key, value in state.items()}
        scale = {"scale": np.ones(4, dtype=np.float32), "vae_name": "somebody/model", "_vae": None}
        content = easy(
            encoder=Persistent(rebuild, "StabilityVAEEncoder", {**scale, "_init_args": (), "_init_kwargs": {}}),
            dataset_kwargs=easy(path="data.zip"),
            loss_fn=Persistent(rebuild, "EDM2Loss", {"_init_args": (), "_init_kwargs": {}}),
            ema=network(rebuild, "Precond", config, half, BUFFERS),
        )
        path.write_bytes(pickle.dumps(content, protocol))
    return path


def dit_training(path: Path, state: Mapping[str, Tensor], model: str, legacy: bool = False) -> Path:
    """`checkpoints/<step>.pt` of DiT and U-DiT."""
    args = argparse.Namespace(model=model, image_size=256, num_classes=1000, data_path="/home/somebody", vae="ema")
    content = {
        "model": {key: value / 2 for key, value in state.items()},
        "ema": with_metadata(state),
        "opt": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "args": args,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def bare(path: Path, state: Mapping[str, Tensor], legacy: bool = False) -> Path:
    """A state dict and nothing else, as `torch.save(net.state_dict())` writes it."""
    torch.save(with_metadata(state), path, _use_new_zipfile_serialization=not legacy)
    return path


def with_metadata(state: Mapping[str, Tensor]) -> Any:
    """An OrderedDict with the attribute that every state dict carries."""
    made = collections.OrderedDict(state)
    made._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return made


def zip_of(value: Any) -> bytes:
    """The bytes of `torch.save` of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()

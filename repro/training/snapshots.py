"""Averaged weights at a milestone, as safetensors: what evaluations sample from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from repro.errors import CorruptData
from repro.files import make_folder, write_atomic


def path(folder: Path, milestone: int, profile: str) -> Path:
    """`ema/<kimg>-<profile>.safetensors` in the folder of a trajectory; milestone in images."""
    return folder / "ema" / f"{milestone / 1000:010.3f}-{profile}.safetensors"


def needed(folder: Path, ema: Any, milestones: Iterable[int]) -> list[Path]:
    """The snapshots in the folder of a trajectory that an average (of any kind) at milestones needs."""
    names = [profile.name for profile in ema.profiles()]
    return [path(folder, time, name) for at in milestones for time in ema.times(at) for name in names]


def state_with(net: nn.Module, average: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state dict of `net` with its parameters (in order) replaced by `average`; buffers are the network's own."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    for (name, _), value in zip(net.named_parameters(), average, strict=True):
        state[name] = value.detach().cpu().contiguous()
    return state


def save(folder: Path, milestone: int, profile: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write a snapshot atomically; `meta` (trajectory hash, images seen, data manifest) goes into its header.

    Equal weights and metadata give equal bytes.
    """
    target = path(folder, milestone, profile)
    make_folder(target.parent)
    content = safetensors.torch.save(dict(state), {key: str(value) for key, value in meta.items()})
    write_atomic(target, _canonical(content))
    return target


def _canonical(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library writes them in an order that differs from call to call.

    The file is 8 bytes with the header's length (little-endian), the header as JSON, and the tensors' bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def load(file: Path, trajectory: str, net: nn.Module) -> dict[str, str]:
    """Load a snapshot into `net` and return its metadata.

    Raises:
        CorruptData: the file is truncated, of another trajectory, or of another network (names the first key).
    """
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            meta = dict(stream.metadata() or {})
            state = {key: stream.get_tensor(key) for key in stream.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptData(f"{file}: cannot be read ({error}); delete it and run again to train it anew") from None
    if meta.get("trajectory") != trajectory:
        raise CorruptData(f"{file}: holds weights of another trajectory")
    fill(net, state, file)
    return meta


def fill(net: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load a state dict that came from `file` into `net`. CorruptData where it is of another network."""
    expected = net.state_dict()
    wrong = sorted(set(state) ^ set(expected) or {key for key in state if state[key].shape != expected[key].shape})
    if wrong:
        raise CorruptData(f"{file}: its weights do not fit the network: {wrong[0]}")
    with torch.no_grad():
        net.load_state_dict(state)

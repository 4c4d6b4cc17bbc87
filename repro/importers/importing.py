"""`repro import`: a published checkpoint as a folder of ours, whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.config import Node
from repro.errors import CorruptData, UsageError
from repro.importers import checkpoints, family_of, renamed
from repro.importers.checkpoints import Checkpoint
from repro.importers.folders import Progress, new_folder, write_description, write_stored
from repro.importers.loading import check_constant, check_names, constants
from repro.importers.nodes import Description
from repro.importers.sources import File, quoted
from repro.importers.tensors import Stored
from repro.published import BARE, WEIGHTS, Imported, published_files, read_imported

MAX_NUMBER = 1_000_000
MAX_LIST = 64
LATENT = 8
"""Pixels of an image over those of its latents, in the networks whose checkpoints name the image's size."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user says about a file beside its name.

    name: its published file name, the published name of its network ("DiT-XL/2"), or a cell whose network it is;
    config: published arguments that the file does not tell; nimg, std: of an EDM2 snapshot that was renamed, or the
    average to take from EDM2's training state.
    """

    name: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nimg: int | None = None
    std: float | None = None


def import_file(
    path: Path,
    out: Path,
    sha256: str = "",
    wanted: Wanted = Wanted(),
    progress: Progress = lambda done, total: None,
) -> tuple[Imported, bool]:
    """Import a checkpoint into the folder `out`; False where that has been done before.

    Args:
        sha256: digest that the file must have, in hex; '' for any.
        progress: called with (done, total) while the file is hashed, then while its weights are written.

    Raises:
        UsageError: no such file; another digest (nothing of the file is looked at); a folder with something else in it;
            an argument that the file does not tell; a checkpoint of another network (the first key is named).
        CorruptData: a file that is damaged, of an unknown kind, or that wants something run (which is named).
    """
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError("--sha256 must be 64 hex digits")
    with File(path) as source:
        digest = source.sha256(progress)
        if sha256 and digest != sha256.lower():
            raise UsageError(f"{source.name}: has the sha256 {digest}, not {sha256.lower()}; nothing of it was read")
        if out.exists():
            return _already(out, digest), False
        published = wanted.name if _is_file_name(wanted.name) else path.name
        found = checkpoints.read(source, published, wanted.std)
        node, state, arguments = _identify(found, wanted, source.name)
        net = _on_meta(node, found, state, source.name)
        expected = constants(net, node)
        provenance = _provenance(found, wanted, published, digest, source.size, arguments)
        provenance["parameters"] = sum(p.numel() for p in net.parameters())
        provenance["keys"] = [{"file": theirs, "network": ours} for ours, (theirs, _) in state.items()]
        ordered = {key: state[key][1] for key in net.state_dict()}

        def check(key: str, value: Tensor) -> None:
            try:
                check_constant(key, expected.get(key), value)
            except ValueError as error:
                raise UsageError(f"{source.name}: {error}") from None

        with new_folder(out) as folder:
            write_stored(folder / WEIGHTS, ordered, {"source_sha256": digest}, check, progress)
            write_description(folder, node, provenance)
            source.check_unchanged()
    return read_imported(out), True


def default_folder(path: Path, name: str) -> str:
    """Name of the folder of an imported file: its published name without ending, of plain characters only."""
    stem = Path(name if _is_file_name(name) else path.name).stem
    return re.sub(r"[^A-Za-z0-9._+-]", "-", stem).lstrip(".")[:100] or "checkpoint"


def _is_file_name(name: str) -> bool:
    return name.endswith((".pkl", ".pt", ".pth"))


def _already(out: Path, digest: str) -> Imported:
    try:
        known = read_imported(out)
    except CorruptData as error:
        raise UsageError(f"{out} exists and is no imported checkpoint ({error}); choose another --out") from None
    if known.sha256 != digest:
        raise UsageError(
            f"{out} holds {known.source} of sha256 {known.sha256[:16]}..., another file; choose another --out"
        )
    return known


State = dict[str, tuple[str, Stored]]
"""Our key -> (the file's key, the tensor)."""


def _identify(found: Checkpoint, wanted: Wanted, where: str) -> tuple[Node, State, dict[str, Any]]:
    """Our network, its tensors and the published arguments that describe it. UsageError for what does not fit."""
    module = family_of(found.family)
    try:
        state = renamed(module, {key: (key, item) for key, item in found.state.items()})
        if wanted.name.count("/") == 3:
            return _of_cell(wanted.name), state, {}
        name, arguments = _arguments(found, wanted, state, where)
        _check_sizes(arguments, len(state))
        described = module.describe(name, arguments)
        if hasattr(module, "check_form"):
            with torch.device("meta"):
                module.check_form(described.build(), state)
    except (ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError, IndexError) as error:
        raise UsageError(f"{where}: {_line(error)}") from None
    return _with_default_limits(described, where), state, {"name": name, "arguments": arguments}


def _of_cell(name: str) -> Node:
    """The network of a cell at full scale; of one that predicts noise the bare network, as published files have it."""
    from repro.cells import resolve
    from repro.tables import find_cell

    denoiser: Node = resolve(find_cell(name)).trajectory.args["denoiser"]
    model: Node = denoiser.args["model"]
    return model if denoiser.name in BARE else denoiser


def _arguments(found: Checkpoint, wanted: Wanted, state: State, where: str) -> tuple[str, dict[str, Any]]:
    """Published name and arguments: of the file, then of the user."""
    if wanted.name and not _is_file_name(wanted.name):
        return wanted.name, dict(wanted.config)
    arguments = {**found.config, **wanted.config}
    unknown = [key for key in found.unknown if key not in wanted.config]
    if not unknown:
        return found.name, arguments
    named = str(found.about.get("model", ""))
    if named and not wanted.config:
        size = {"input_size": found.about["image_size"] // LATENT} if type(found.about.get("image_size")) is int else {}
        classes = {"num_classes": found.config["num_classes"]}
        own = {**classes, **size}
        if _fits(found.family, named, own, state):
            return named, own
    example = ", ".join(f'"{key}": ...' for key in unknown)
    named = f"; it calls itself {quoted(named, 40)}, which its shapes are not" if named else ""
    raise UsageError(
        f"{where}: a {found.name} whose file does not tell {', '.join(unknown)}{named}; give them as "
        f"--config '{{{example}}}', or its name as --as (such as DiT-XL/2 or U-DiT-B)"
    )


def _fits(family: str, name: str, arguments: Mapping[str, Any], state: State) -> bool:
    try:
        with torch.device("meta"):
            net = family_of(family).describe(name, arguments).build()
        check_names(net, {key: item.shape for key, (_, item) in state.items()})
    except ValueError:
        return False
    return True


def _check_sizes(arguments: Mapping[str, Any], tensors: int) -> None:
    """ValueError for arguments that would make a network of more parts than the file has tensors, or of no size."""
    for key, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and not (math.isfinite(item) and abs(item) <= MAX_NUMBER):
                raise ValueError(f"the argument {quoted(str(key))} is {quoted(str(item), 40)}")
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise ValueError(f"the argument {quoted(str(key))} is a list of {len(value)}")
    levels = arguments.get("channel_mult")
    blocks = arguments.get("num_blocks", 1)
    depth = arguments.get("depth", 1)
    parts = blocks * (len(levels) if isinstance(levels, list) else 1) if isinstance(blocks, int) else 0
    deepest = sum(depth) if isinstance(depth, list) else depth if isinstance(depth, int) else 0
    if max(parts, deepest) > tensors:
        raise ValueError(f"its arguments ask for {max(parts, deepest)} blocks, it has {tensors} tensors")


def _with_default_limits(described: Description, where: str) -> Node:
    """The node. UsageError where the checkpoint asks for noise levels that ours does not take as arguments."""
    defaults = {"sigma_min": 0.0, "sigma_max": math.inf}
    for key, value in described.limits.items():
        if value != defaults[key]:
            raise UsageError(f"{where}: {key} = {value!r} is not what this network supports ({defaults[key]!r})")
    return described.node


def _on_meta(node: Node, found: Checkpoint, state: State, where: str) -> torch.nn.Module:
    """The network without memory, compared with the file by names and shapes before anything is allocated."""
    try:
        with torch.device("meta"):
            net = Description(node).build()
        check_names(net, {key: item.shape for key, (_, item) in state.items()})
    except (ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError, IndexError, RuntimeError) as error:
        raise UsageError(f"{where}: {_line(error)}") from None
    except AssertionError:
        raise UsageError(f"{where}: arguments that make no network: {quoted(str(found.config), 200)}") from None
    return net


def _line(error: Exception) -> str:
    return quoted(" ".join(str(error).split()), 400)


def _provenance(
    found: Checkpoint, wanted: Wanted, published: str, digest: str, size: int, arguments: dict[str, Any]
) -> dict[str, Any]:
    known = next((file.file for file in published_files() if file.sha256 == digest), None)
    return {
        "source": published,
        "bytes": size,
        "sha256": digest,
        "known_as": known,
        "format": found.format,
        "family": found.family,
        "class": found.name,
        **arguments,
        "as": wanted.name or None,
        "cell": wanted.name if wanted.name.count("/") == 3 else "",
        "kind": found.kind,
        "entries": list(found.taken),
        "nimg": wanted.nimg if wanted.nimg is not None else found.nimg,
        "std": wanted.std if wanted.std is not None else found.std,
        "about": found.about,
    }

"""EDM2's post-hoc averages from imported snapshots: the same reconstruction as from those that training kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from repro.errors import CorruptData, UsageError
from repro.identity import SHORT
from repro.importers.folders import new_folder, write_description, write_state
from repro.importers.nodes import Description, from_json
from repro.published import WEIGHTS, Imported, read_imported
from repro.training.ema import PowerEMA
from repro.training.posthoc import ERROR_LIMIT, Snapshot, reconstruct


def imported_snapshots(folders: Sequence[Path]) -> list[Snapshot]:
    """Imported folders as snapshots, whose tensors are read when they are needed.

    Raises:
        CorruptData: a folder that holds no imported checkpoint.
        UsageError: live weights, an unknown time or width, snapshots of different networks; the folder is named.
    """
    found = [read_imported(folder) for folder in folders]
    if not found:
        raise UsageError("no snapshots to make an average of")
    for one in found:
        if one.kind != "ema" or one.nimg is None or one.std is None:
            raise UsageError(
                f"{one.folder}: the time and the width of its average are not known: import the snapshot anew with "
                "--as NAME-<kimg>-<std>.pkl"
            )
        if one.network != found[0].network:
            raise UsageError(f"{one.folder}: is of another network than {found[0].folder}")
    return [_snapshot(one) for one in found]


def _snapshot(one: Imported) -> Snapshot:
    def read() -> dict[str, Tensor]:
        try:
            with safetensors.safe_open(one.weights, framework="pt") as stream:
                return {key: stream.get_tensor(key) for key in stream.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise CorruptData(f"{one.weights}: cannot be read ({error})") from None

    assert one.nimg is not None and one.std is not None
    return Snapshot(one.nimg, one.std, one.weights, {"nimg": str(one.nimg), "sha256": one.sha256}, read)


def reconstruct_imported(
    folders: Sequence[Path], stds: Sequence[float], limit: float = ERROR_LIMIT
) -> list[dict[str, Tensor]]:
    """State dicts, float32, of averages of widths `stds` at the time of the latest of some imported snapshots.

    folders: snapshots of one network, at any times and widths. Raises UsageError where they do not determine an average
    (says which they do), and as `imported_snapshots`.
    """
    found = imported_snapshots(folders)
    with torch.device("meta"):
        net = Description(from_json(read_imported(folders[0]).network)).build()
    buffers = frozenset(name for name, _ in net.named_buffers(remove_duplicate=False))
    return reconstruct(found, stds, buffers, limit)


def import_reconstruction(folders: Sequence[Path], std: float, published: Path, limit: float = ERROR_LIMIT) -> Imported:
    """An average of width `std` at the time of the latest snapshot, as an imported folder of its own in `published`.

    Its `sha256` is that of the digests, times and widths of its snapshots and of `std`: it has no file of its own. One
    that is there already is taken. Errors: see `reconstruct_imported`.
    """
    imported_snapshots(folders)  # refuse what is no snapshot
    found = sorted((read_imported(folder) for folder in folders), key=lambda one: (one.nimg or 0, one.std or 0.0))
    sources = [{"nimg": one.nimg, "std": one.std, "sha256": one.sha256} for one in found]
    digest = hashlib.sha256(json.dumps([sources, std], sort_keys=True).encode()).hexdigest()
    last = found[-1]
    name = f"posthoc-{(last.nimg or 0) // 1000:07d}-{PowerEMA(std).name}-from-{digest[:SHORT]}"
    if (published / name).exists():
        return read_imported(published / name)
    (state,) = reconstruct_imported([one.folder for one in found], [std], limit)
    node = from_json(last.network)
    with torch.device("meta"):
        net = Description(node).build()
    provenance = {
        "source": name,
        "bytes": None,
        "sha256": digest,
        "known_as": None,
        "format": "post-hoc average of imported snapshots",
        "family": "edm2",
        "class": "Precond",
        "as": None,
        "cell": "",
        "kind": "ema",
        "nimg": last.nimg,
        "std": std,
        "snapshots": sources,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    with new_folder(published / name) as folder:
        write_state(folder / WEIGHTS, {key: state[key] for key in net.state_dict()}, {"source_sha256": digest})
        write_description(folder, node, provenance)
    return read_imported(published / name)

"""Time and memory of `repro import` on files of about 300 million parameters, in every container.

    python benchmarks/importers.py [--folder DIR]

Each file is imported by a process of its own. Reading is measured by itself, the file hashed while it is read as the
import does; memory is the greatest resident set of the process, once as it is and once less that of a process that
only imports PyTorch and the networks.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "importers"))

EDM2_S = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "model_channels": 192, "use_fp16": True}
ADM = {
    "model_type": "DhariwalUNet", "img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": 192,
    "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8], "use_fp16": True,
}  # fmt: skip


def state_of(family: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A state dict of the right form with arbitrary weights."""
    import torch

    from repro.importers import family_of
    from repro.importers.loading import constants

    described = family_of(family).describe(name, config)
    with torch.device("meta"):
        net = described.build()
    fixed = constants(net, described.node)
    return {key: fixed[key] if key in fixed else torch.randn(value.shape) for key, value in net.state_dict().items()}


def write(kind: str, folder: Path) -> Path:
    """One of the files of `KINDS`."""
    import published_files as files

    if kind.startswith("EDM2"):
        return files.edm2_snapshot(folder / "edm2-2147483-0.130.pkl", EDM2_S, state_of("edm2", "Precond", EDM2_S))
    if kind.startswith("EDM"):
        return files.edm_snapshot(folder / "adm.pkl", "EDMPrecond", ADM, state_of("edm", "EDMPrecond", ADM))
    return files.bare(folder / "dit.pt", state_of("udit", "DiT-L/2", {}), legacy="legacy" in kind)


KINDS = {
    "EDM2 snapshot, float16": (),
    "EDM snapshot, float32": (),
    "DiT state dict, zip": (),
    "DiT state dict, legacy container": (),
}


def measured(task: Callable[..., Any], *arguments: Any) -> tuple[float, int, Any]:
    """(seconds, greatest resident bytes, result) of a call in a new process; starting it is not counted."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, task, arguments))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        raise SystemExit("the measured process failed") from None
    process.join()
    return result  # type: ignore[no-any-return]


def _child(pipe: Any, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import repro.experiment
    import repro.importers.importing  # noqa: F401

    started = time.monotonic()
    result = task(*arguments)
    pipe.send((time.monotonic() - started, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, result))


def nothing() -> None:
    """What the import's memory is compared with."""


def import_file(path: Path, out: Path) -> int:
    """`repro import`; the parameters of the network."""
    import json

    from repro.importers.importing import import_file

    imported, _ = import_file(path, out)
    return int(json.loads((imported.folder / "provenance.json").read_bytes())["parameters"])


def read_file(path: Path) -> str:
    """Read and hash a file."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**23))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the files, 3 GB at a time (default: a temporary one)")
    base = parser.parse_args().folder
    _, floor, _ = measured(nothing)
    print(f"a process with PyTorch and nothing to import: {floor / 1e6:,.0f} MB")
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=base) as name:
            folder = Path(name)
            measured(write, kind, folder)
            path = next(folder.iterdir())
            size = path.stat().st_size
            reading, _, _ = measured(read_file, path)
            seconds, peak, parameters = measured(import_file, path, folder / "out")
            print(
                f"{kind}: {parameters / 1e6:.0f} million parameters, {size / 1e6:,.0f} MB; read and hashed in "
                f"{reading:.1f} s, imported in {seconds:.1f} s ({seconds - reading:+.1f} s); {peak / 1e6:,.0f} MB "
                f"resident, {peak / size:.2f} times the file ({(peak - floor) / size:.2f} above the floor)"
            )


if __name__ == "__main__":
    main()

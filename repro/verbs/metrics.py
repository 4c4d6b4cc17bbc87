"""`repro fid`, `repro ref` and `repro doctor`: distances by hand, references, and what this machine can score."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.errors import MissingPrerequisite, ReproError, UsageError
from repro.metrics import references
from repro.metrics.backends import Extractor, find_backend
from repro.metrics.compare import Line, choose_backends, compare, open_side, warnings
from repro.metrics.feature_protocol import FeatureProtocol
from repro.metrics.formats import Found, Pair, read_file
from repro.metrics.images import ImageSet, check_count, from_npz, open_images, require
from repro.metrics.measure import BLOCK, features_of, measure
from repro.metrics.protocols import (
    ADMProtocol,
    DigitsProtocol,
    DINOv2Protocol,
    InceptionProtocol,
    PytorchFIDProtocol,
)
from repro.metrics.references import Reference
from repro.metrics.weights import PUBLISHED, download, file_sha256, find, search_folders

PREPROCESSING_HINT = "tf1 (EDM, EDM2, ADM), legacy_pytorch (pytorch-fid, U-ViT), clean (clean-fid), dinov2, digits"
PAPERS: Sequence[tuple[str, FeatureProtocol | DigitsProtocol]] = (
    ("mini tables (digits FD)", DigitsProtocol()),
    ("EDM, CIFAR-10", InceptionProtocol()),
    ("EDM, FFHQ", InceptionProtocol(reference="ffhq-64x64.npz")),
    ("EDM, AFHQv2", InceptionProtocol(reference="afhqv2-64x64.npz")),
    ("EDM, ImageNet-64", InceptionProtocol(reference="imagenet-64x64.npz")),
    ("EDM2, ImageNet-512", InceptionProtocol(reference="img512.pkl")),
    ("EDM2, ImageNet-512, FD-DINOv2 (unverified)", DINOv2Protocol()),
    ("U-DiT, ImageNet-256", ADMProtocol()),
    ("U-DiT, ImageNet-512", ADMProtocol(reference="VIRTUAL_imagenet512.npz")),
    ("ScaleLong, CIFAR-10", PytorchFIDProtocol()),
)


def fid(options: argparse.Namespace) -> int:
    """Print the distance of two sides by every backend asked for, side by side."""
    a, b = open_side(options.first, options.weights), open_side(options.second, options.weights)
    names: list[str | None] = [*choose_backends(options.backends or [], a, b)] or [None]
    lines = [
        compare(
            a,
            b,
            name,
            weights_dir=options.weights,
            device=_device(options.device),
            sha256=options.weights_sha256,
            limit=options.n,
            error=not options.no_error,
            kid=options.kid,
            extrapolate=options.extrapolate,
            progress=_progress,
        )
        for name in names
    ]
    notes = list(dict.fromkeys(note for line in lines for note in warnings(line, a, b)))
    if options.json:
        facts = [dataclasses.asdict(line) | {"difference": line.distance - lines[0].distance} for line in lines]
        print(json.dumps({"first": a.name, "second": b.name, "backends": facts, "warnings": notes}, indent=1))
        return 0
    print(f"{a.name} ({_count(lines[0].n[0])}) against {b.name} ({_count(lines[0].n[1])})")
    for text in _table(lines):
        print(f"  {text}")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return 0


def _table(lines: Sequence[Line]) -> list[str]:
    extra = [
        (title, name)
        for title, name in (("KID", "kid"), ("KID se", "kid_error"), ("FD_inf", "extrapolated"))
        if getattr(lines[0], name) is not None
    ]
    header = ["backend", "FD", "se", "difference", "d", *(title for title, _ in extra)]
    rows = [
        [
            line.backend,
            f"{line.distance:.6g}",
            "-" if line.error is None else f"{line.error:.2g}",
            "" if line is lines[0] else f"{line.distance - lines[0].distance:+.3g}",
            str(line.dim),
            *(f"{getattr(line, name):.4g}" for _, name in extra),
        ]
        for line in lines
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]


def _count(n: int | None) -> str:
    return "n unknown" if n is None else f"n = {n}"


def ref_make(options: argparse.Namespace) -> int:
    """Compute the statistics of a set of real images and store them."""
    images = _data(options)
    check_count(images)
    backend = find_backend(options.backend)
    layers = ("features", "spatial") if options.spatial else ("features",)
    extractor = Extractor(options.backend, options.weights, _device(options.device), layers, options.weights_sha256)
    shape: list[tuple[int, int]] = []

    def batches() -> Any:
        for batch in images.batches(BLOCK):
            shape.append((batch.shape[2], batch.shape[3]))
            yield batch

    blocks = features_of(batches(), extractor, lambda done: _progress(images.name, done, images.count))
    kept = ["features"] if options.real else []
    measured = measure(blocks, layers, kept, images.count)
    name = options.id or f"{Path(images.name).stem}-{backend.preprocessing}"
    reference = Reference(
        id=name,
        preprocessing=backend.preprocessing,
        n=images.count,
        resolution=shape[0],
        source=Path(images.name).name,
        source_sha256=_digest_of(Path(images.name)),
        statistics={layer: (m.mean, m.covariance) for layer, m in measured.moments.items()},
        real=measured.kept["features"][: options.real] if options.real else None,
    )
    if not measured.exact:
        print(
            "note: features too large or too small for exact sums: last digits depend on the order of images",
            file=sys.stderr,
        )
    return _store(reference, options)


def ref_import(options: argparse.Namespace) -> int:
    """Bring a published file of statistics into the store."""
    path = Path(options.file)
    found = read_file(path)
    preprocessing = options.preprocessing or _said_by_name(path)
    if preprocessing is None:
        raise UsageError(
            f"{path}: the file does not say by which preprocessing it was made; --preprocessing {PREPROCESSING_HINT}"
        )
    statistics = _statistics(path, found, preprocessing)
    if found.images is not None:
        print(
            f"note: precision and recall need the images of {path.name}: keep the file, and let the protocol name it",
            file=sys.stderr,
        )
    reference = Reference(
        id=options.id or path.stem,
        preprocessing=preprocessing,
        n=options.n or found.n,
        resolution=found.images.shape[1:3] if found.images else None,
        source=path.name,
        source_sha256=found.sha256,
        statistics=statistics,
    )
    return _store(reference, options)


def _said_by_name(path: Path) -> str | None:
    """The preprocessing that a file's name gives away: clean-fid's mode, torch-fidelity's extractor."""
    if path.suffix == ".pt":
        return "tf1" if "inception-v3-compat" in path.name else None
    modes = {"_clean_": "clean", "_legacy_pytorch_": "legacy_pytorch", "_legacy_tensorflow_": "tf1"}
    return next((value for mode, value in modes.items() if mode in path.name), None)


def _statistics(path: Path, found: Found, preprocessing: str) -> dict[str, Pair]:
    if found.features is not None:
        if len(found.features) < 2:
            raise UsageError(f"{path}: one feature has no covariance")
        return {"features": (found.features.mean(axis=0), np.atleast_2d(np.cov(found.features, rowvar=False)))}
    if preprocessing == "dinov2" and "dinov2" in found.statistics:
        return {"features": found.statistics["dinov2"]}
    wanted = {name: pair for name, pair in found.statistics.items() if name != "dinov2"}
    if "features" not in wanted:
        raise UsageError(f"{path}: has no statistics to import; `repro ref make` computes those of images")
    return wanted


def ref_info(options: argparse.Namespace) -> int:
    """Print what a reference is, or a list of all."""
    if options.reference:
        path = references.find(options.reference, options.weights) or Path(options.reference)
        require(path)
        files = [path]
    else:
        files = references.stored(options.weights)
    facts = []
    for file in files:
        try:
            described = references.read(file).describe() if references.is_reference(file) else _foreign(file)
            facts.append({**described, "sha256": file_sha256(file), "file": str(file)})
        except ReproError as error:
            if options.reference:
                raise
            print(f"not used: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts, indent=1))
    elif not facts:
        print(f"no references in {search_folders(options.weights)[0] / references.FOLDER}")
    else:
        for fact in facts:
            print(fact["id"])
            for key, value in fact.items():
                if key != "id" and value is not None:
                    print(f"  {key:15} {value}")
    return 0


def _foreign(path: Path) -> dict[str, Any]:
    found = read_file(path)
    return {
        "id": path.stem,
        "kind": found.kind,
        "n": found.n,
        "statistics": {name: len(mu) for name, (mu, _) in found.statistics.items()},
        "images": list(found.images.shape) if found.images else None,
        "features": list(found.features.shape) if found.features is not None else None,
    }


def doctor(options: argparse.Namespace) -> int:
    """Say which protocols can be scored on this machine, and how to get what is missing."""
    if options.download:
        for file in PUBLISHED:
            if find(file, options.weights) is None:
                print(f"fetched {download(file, options.weights)}", file=sys.stderr)
    facts: list[dict[str, Any]] = []
    for name, protocol in PAPERS:
        missing = protocol.missing(options.weights)
        facts.append({"protocol": name, "class": type(protocol).__name__, "ready": not missing, "missing": missing})
    libraries = {
        name: _importable(module) for name, module in (("torch-fidelity", "torch_fidelity"), ("clean-fid", "cleanfid"))
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folders = [str(folder) for folder in search_folders(options.weights)]
    if options.json:
        print(json.dumps({"protocols": facts, "libraries": libraries, "device": device, "folders": folders}, indent=1))
        return 0
    print(f"device {device}; {', '.join(f'{name} {state}' for name, state in libraries.items())}")
    print(f"weights and references are looked for in {', '.join(folders)}")
    shown: set[str] = set()
    for fact in facts:
        print(f"  {'ready  ' if fact['ready'] else 'missing'}  {fact['protocol']}")
        for line in fact["missing"]:
            if line not in shown:
                print(f"           {line}")
            shown.add(line)
    return 0


def _importable(module: str) -> str:
    try:
        __import__(module)
    except Exception as error:  # a broken installation raises anything
        return f"cannot be imported ({type(error).__name__}: {error})"
    return "works"


def _store(reference: Reference, options: argparse.Namespace) -> int:
    path = references.save(reference, options.weights)
    facts = f"{reference.preprocessing}, {_count(reference.n)}, d = {reference.dim}, sha256 {file_sha256(path)}"
    print(f"{reference.id}: {facts}")
    print(f"written to {path}", file=sys.stderr)
    return 0


def _data(options: argparse.Namespace) -> ImageSet:
    """The images of a path, or of a prepared data set of that name."""
    path = Path(options.data_set)
    prepared = Path(options.data or os.environ.get("REPRO_DATA", "data")) / options.data_set
    path = path if path.exists() or not prepared.exists() else prepared
    if not path.exists():
        raise MissingPrerequisite(f"{path}: no such folder, zip, shards or npz, and no prepared data set {prepared}")
    images = open_images(path)
    if images is None:
        found = read_file(path)
        if found.images is None:
            raise UsageError(f"{path}: holds no images; `repro ref import` takes statistics")
        images = from_npz(found.images)
    return images


def _digest_of(path: Path) -> str:
    """sha256 of a file, or of the manifest of shards; '' for a folder of files."""
    from repro.data.manifest import MANIFEST_NAME, load_manifest

    if path.is_file():
        return file_sha256(path)
    return load_manifest(path).sha256 if (path / MANIFEST_NAME).is_file() else ""


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingPrerequisite("no CUDA device on this machine; --device cpu")
    return name


def _progress(name: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "" if done < total else "\r\033[K"
        print(f"\r\033[K{name}: {done}/{total} images", end=end, file=sys.stderr, flush=True)

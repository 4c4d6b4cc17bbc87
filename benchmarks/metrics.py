"""Ratios of one run: our distance beside scipy's matrix root, our features beside each library's own entry point.

python benchmarks/metrics.py [DIMENSION] [IMAGES]

Accuracy is judged where the truth is known: with S2 = A S1 A for a positive definite A, tr (S1 S2)^(1/2) = tr (A S1).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.metrics.backends import Extractor
from repro.metrics.fidelity import ImageDataset
from repro.metrics.frechet import Array, frechet_distance
from repro.metrics.inception import FIDInception
from repro.metrics.weights import INCEPTION, file_sha256

REPEATS = 3


def covariances(dim: int) -> tuple[Array, Array, float]:
    """Two covariances of slowly falling spectra, and the trace of the root of their product."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    first = (rotation * np.geomspace(1, 1e-6, dim)) @ rotation.T
    other = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    factor = (other * np.linspace(0.5, 1.5, dim)) @ other.T
    second = factor @ first @ factor
    return first, (second + second.T) / 2, float(np.trace(factor @ first))


def with_scipy(first: Array, second: Array) -> float:
    """The distance of centred Gaussians as the papers' scripts compute it."""
    from scipy import linalg

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(first @ second)
    root = root[0] if isinstance(root, tuple) else root
    return float(np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def seconds(work: Callable[[], object]) -> float:
    """Of the fastest of some repeats."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def distances(dim: int) -> None:
    """Time and error of the distance."""
    first, second, root_trace = covariances(dim)
    truth = float(np.trace(first) + np.trace(second) - 2 * root_trace)
    zero = np.zeros(dim)
    errors = [
        abs(f() - truth)
        for f in (lambda: frechet_distance(zero, first, zero, second), lambda: with_scipy(first, second))
    ]
    ours = seconds(lambda: frechet_distance(zero, first, zero, second))
    theirs = seconds(lambda: with_scipy(first, second))
    print(f"distance, d = {dim}: {ours:.2f} s, scipy.linalg.sqrtm {theirs:.2f} s: {theirs / ours:.1f} times faster")
    print(f"  errors {errors[0]:.1e} and {errors[1]:.1e}")


def write_weights(folder: Path) -> str:
    """A weights file of the right form with random weights; its sha256."""
    torch.manual_seed(0)
    torch.save(FIDInception().state_dict(), folder / INCEPTION.names[0])
    return file_sha256(folder / INCEPTION.names[0])


def features(count: int) -> None:
    """Throughput of the features of 32x32 images, our backends and the libraries' own entry points in turn."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = write_weights(folder)
        libraries: dict[str, Callable[[], object]] = {
            "torch-fidelity/tf1": lambda: torch_fidelity(images, folder / INCEPTION.names[0]),
            "clean-fid/legacy_pytorch": clean_fid(images, folder, digest),
        }
        for library, entry in libraries.items():
            ours = Extractor(f"own/{library.split('/')[1]}", folder, sha256=digest)
            mine, theirs = seconds(lambda ours=ours: ours(images)), seconds(entry)  # type: ignore[misc]
            times = f"own {mine:.2f} s, library {theirs:.2f} s, ratio {theirs / mine:.2f}"
            print(f"features, {count} images, {library}: {times}")


def torch_fidelity(images: Tensor, weights: Path) -> object:
    """torch-fidelity's one function, asked for what needs least beside the features."""
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=ImageDataset(images), isc=True, fid=False, kid=False, cuda=False, batch_size=50, isc_splits=1,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        save_cpu_ram=True, cache=False, verbose=False,
    )  # fmt: skip


def clean_fid(images: Tensor, folder: Path, digest: str) -> Callable[[], object]:
    """clean-fid's resizer and network, as its functions chain them."""
    from cleanfid.resize import build_resizer

    from repro.metrics.backends import clean_fid_network

    network, resizer = clean_fid_network(folder / INCEPTION.names[0], "cpu"), build_resizer("legacy_pytorch")

    def run() -> None:
        with torch.no_grad():
            for part in torch.split(images, 50):
                resized = np.stack([resizer(image.permute(1, 2, 0).numpy()) for image in part])
                network(torch.from_numpy(resized).permute(0, 3, 1, 2))

    return run


def main() -> None:
    """Print the ratios."""
    dim = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    torch.set_num_threads(1)
    distances(dim)
    features(count)


if __name__ == "__main__":
    main()

"""Two sets of images, or statistics of them, compared by any number of backends: what `repro fid` prints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from repro.errors import UsageError
from repro.metrics import references
from repro.metrics.backends import BACKENDS, Extractor, find_backend
from repro.metrics.formats import Pair, read_file
from repro.metrics.frechet import frechet_distance
from repro.metrics.images import ImageSet, check_count, from_npz, open_images, require
from repro.metrics.kernel import kernel_distance
from repro.metrics.measure import BLOCK, features_of, measure
from repro.metrics.uncertainty import extrapolated_distance, jackknife_error
from repro.metrics.weights import StrPath

PROTOCOL_N = 50_000
DEFAULT_BACKENDS = ("torch-fidelity/tf1", "clean-fid/legacy_pytorch", "clean-fid/clean")
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two things compared.

    name: as given; images: a set, or None; statistics: by name, where it has some; preprocessing: of the statistics,
    None where a file does not say; n: number of images, None where unknown.
    """

    name: str
    images: ImageSet | None
    statistics: dict[str, Pair]
    preprocessing: str | None
    n: int | None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """What one backend found. error: standard error of the distance; None where a side has statistics only."""

    backend: str
    distance: float
    error: float | None
    n: tuple[int | None, int | None]
    dim: int
    exact: bool
    kid: float | None = None
    kid_error: float | None = None
    extrapolated: float | None = None


@dataclasses.dataclass(frozen=True)
class _Sampled:
    pair: Pair
    features: npt.NDArray[np.float32] | None
    exact: bool = True


def open_side(name: str, weights_dir: StrPath | None = None) -> Side:
    """A folder, zip, tar or shards of images, an npz batch, a file of statistics, or the id of a stored reference.

    Raises:
        MissingPrerequisite: nothing of this name.
        UsageError, CorruptData: it cannot be compared; says why.
    """
    path = Path(name)
    if not path.exists() and (stored := references.find(name, weights_dir)):
        path = stored
    require(path)
    if images := open_images(path):
        check_count(images)
        return Side(name, images, {}, None, images.count, images.notes)
    if path.suffix == ".npz" and references.is_reference(path):
        reference = references.read(path)
        named = {"dinov2": reference.statistics["features"]} if reference.preprocessing == "dinov2" else {}
        return Side(name, None, reference.statistics | named, reference.preprocessing, reference.n)
    found = read_file(path)
    if found.statistics:
        return Side(name, None, found.statistics, None, found.n)
    if found.images is not None:
        images = from_npz(found.images)
        check_count(images)
        return Side(name, images, {}, None, images.count)
    raise UsageError(f"{name}: features without images; `repro ref import` makes statistics of them")


def choose_backends(asked: Sequence[str], a: Side, b: Side) -> list[str]:
    """The backends of a comparison; an empty list compares statistics with statistics.

    Raises:
        UsageError: a backend of another preprocessing than a side's statistics, or statistics that do not match.
    """
    known = {side.preprocessing for side in (a, b) if side.preprocessing}
    if len(known) > 1:
        raise UsageError(f"{a.name} is of {a.preprocessing}, {b.name} of {b.preprocessing}: they cannot be compared")
    if a.images is None and b.images is None:
        if asked:
            raise UsageError("both sides are statistics: there is nothing for a backend to do")
        return []
    wanted = list(dict.fromkeys(asked))
    if not wanted:
        wanted = [name for name in DEFAULT_BACKENDS if not known or BACKENDS[name].preprocessing in known]
        wanted = wanted or [f"own/{next(iter(known))}"]
    for name in wanted:
        preprocessing = find_backend(name).preprocessing
        if known and preprocessing not in known:
            raise UsageError(f"{name} cannot be compared with statistics of {', '.join(known)}")
    return wanted


def compare(
    a: Side,
    b: Side,
    backend: str | None,
    *,
    weights_dir: StrPath | None = None,
    device: str = "cpu",
    sha256: str | None = None,
    limit: int | None = None,
    error: bool = True,
    kid: bool = False,
    extrapolate: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Line:
    """The distance of two sides by one backend.

    Args:
        a, b: generated and reference.
        backend: a key of `BACKENDS`; None where both are statistics.
        sha256: pinned digest of the backend's weights, None for the published one.
        limit: take so many random images of `a`.
        error: compute the block jackknife; both sides' variances where both are images.
        kid, extrapolate: also the kernel distance (both must be images), and FD at infinitely many samples.
        progress: called with (name of a side, images done, images).

    Raises:
        UsageError: dimensions that differ, or too few images.
    """
    if limit is not None and (a.images is None or not 2 <= limit <= a.images.count):
        have = "statistics" if a.images is None else f"{a.images.count} images"
        raise UsageError(f"{a.name}: {limit} images were asked for, but it has {have}")
    extractor = Extractor(backend, weights_dir, device, sha256=sha256) if backend else None
    first = _sample(a, extractor, limit, progress)
    second = _sample(b, extractor, None, progress)
    if len(first.pair[0]) != len(second.pair[0]):
        raise UsageError(
            f"{a.name} has features of dimension {len(first.pair[0])}, {b.name} of {len(second.pair[0])}: "
            "statistics of another extractor"
        )
    found = None
    if kid:
        if first.features is None or second.features is None:
            raise UsageError("the kernel distance needs images on both sides, not statistics")
        size = min(KID_SUBSET_SIZE, len(first.features), len(second.features))
        found = kernel_distance(first.features, second.features, subsets=KID_SUBSETS, subset_size=size)
    return Line(
        backend=backend or "statistics",
        distance=frechet_distance(*first.pair, *second.pair),
        error=_error(first, second) if error else None,
        n=(limit or a.n, b.n),
        dim=len(first.pair[0]),
        exact=first.exact and second.exact,
        kid=found.mean if found else None,
        kid_error=found.error if found else None,
        extrapolated=_extrapolated(a, first, second) if extrapolate else None,
    )


def warnings(line: Line, a: Side, b: Side, protocol_n: int = PROTOCOL_N) -> list[str]:
    """What a reader must know before believing a distance."""
    found = [*a.notes, *b.notes]
    n = line.n[0]
    if n is not None and n < protocol_n and a.images is not None and not line.backend.endswith("/digits"):
        found.append(f"n = {n}, the papers' is {protocol_n}: comparable only with distances of this n")
    for side, count in ((a, line.n[0]), (b, line.n[1])):
        if count is not None and count < 2 * line.dim:
            found.append(f"{side.name}: {count} images, under twice the feature dimension {line.dim}: bias dominates")
        if side.images is None and side.preprocessing is None and line.backend != "statistics":
            found.append(f"{side.name}: does not say by which preprocessing it was made; taken for {line.backend}'s")
    if not line.exact:
        found.append(
            f"{line.backend}: features too large or too small for exact sums: last digits depend on the order of images"
        )
    return found


def _sample(side: Side, extractor: Extractor | None, limit: int | None, progress: Progress) -> _Sampled:
    if side.images is None or extractor is None:
        name = "dinov2" if extractor and extractor.backend.preprocessing == "dinov2" else "features"
        if name not in side.statistics:
            raise UsageError(f"{side.name}: has no statistics of {name}; it has {', '.join(side.statistics)}")
        return _Sampled(side.statistics[name], None)
    count = min(side.images.count, limit or side.images.count)
    batches = side.images.batches(BLOCK, count)
    blocks = features_of(batches, extractor, lambda done: progress(side.name, done, count))
    measured = measure(blocks, ["features"], ["features"], count)
    moments = measured.moments["features"]
    return _Sampled((moments.mean, moments.covariance), measured.kept["features"], moments.exact)


def _error(first: _Sampled, second: _Sampled) -> float | None:
    parts = [
        jackknife_error(own.features, *other.pair)
        for own, other in ((first, second), (second, first))
        if own.features is not None
    ]
    return math.hypot(*parts) if parts else None


def _extrapolated(a: Side, first: _Sampled, second: _Sampled) -> float:
    if first.features is None:
        raise UsageError(f"{a.name}: extrapolation needs images, not statistics")
    try:
        return extrapolated_distance(first.features, *second.pair).intercept
    except ValueError as error:
        raise UsageError(f"{a.name}: {error}") from error

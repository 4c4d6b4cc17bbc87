"""One function that turns the paper's experiment into the same experiment at another size.

A row and a column say *what* is done; the scale says how large. It binds no key that a row or column binds: constructor
arguments declare their unit in a class's `UNITS`, and every argument of a unit is divided by the same number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from repro.config import Node, flatten, transform
from repro.errors import UsageError
from repro.suggest import suggest


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much smaller than the paper an experiment is. Divisors of 1 (the defaults) are the paper's own size.

    Args:
        name: `full`, `mini`, ...
        images: divisor of durations and ramps, counted in images.
        intervals: divisor of snapshot intervals, counted in images.
        halflives: divisor of EMA half-lives and decay times, counted in images.
        batch: strictly increasing map of batch sizes as (paper's, ours) pairs, linear in between; None keeps them.
        channels: divisor of feature channels.
        head_channels: divisor of the channels of an attention head.
        heads: map of the numbers of attention heads that decide a width, given like `batch`.
        blocks: divisor of residual blocks a level.
        resolution: divisor of image resolutions and of attention resolutions.
        samples: divisor of the number of generated images.
        ranges: divisor of the number of sampling ranges.
        steps: strictly increasing map of sampler steps, given like `batch`.
        image_channels: colour channels of the replaced images; None keeps the column's.
        classes: classes of the replaced data, where the column has any; None keeps the column's.
        source: the data source that replaces every column's; None keeps it.
        protocol: the scoring protocol that replaces every row's; None keeps it.
    """

    name: str = "full"
    images: float = 1
    intervals: float = 1
    halflives: float = 1
    batch: Sequence[tuple[int, int]] | None = None
    channels: float = 1
    head_channels: float = 1
    heads: Sequence[tuple[int, int]] | None = None
    blocks: float = 1
    resolution: float = 1
    samples: float = 1
    ranges: float = 1
    steps: Sequence[tuple[int, int]] | None = None
    image_channels: int | None = None
    classes: int | None = None
    source: Any = None
    protocol: Any = None


_DIVISORS = {
    "images": "images",
    "interval": "intervals",
    "halflife": "halflives",
    "channels": "channels",
    "head_channels": "head_channels",
    "blocks": "blocks",
    "resolution": "resolution",
    "samples": "samples",
    "ranges": "ranges",
}
_REPLACED = {"classes", "source", "protocol"}
_MAPS = {"batch": "batch sizes", "steps": "sampler steps", "heads": "attention heads"}
UNIT_NAMES = {*_DIVISORS, *_REPLACED, *_MAPS, "image_channels"}


def apply_scale(tree: Node, scale: Node) -> Node:
    """A resolved tree with every argument that declares a unit changed to the (resolved) scale."""
    tree = _with_image_channels(tree, scale.args["image_channels"])
    for name in _MAPS:
        check_map(name, scale.args[name])
    for name in _DIVISORS.values():
        if not scale.args[name] > 0:
            raise UsageError(f"Scale.{name} must be positive, not {scale.args[name]}")

    def change(node: Node, key: str, value: Any) -> Any:
        unit = getattr(node.target, "UNITS", {}).get(key)
        if unit not in (None, *UNIT_NAMES):
            raise UsageError(f"{node.name}.UNITS gives {key} the unit {unit!r}{suggest(str(unit), sorted(UNIT_NAMES))}")
        return value if unit in (None, "image_channels") else scaled(value, unit, scale.args)

    return transform(tree, change)


def _with_image_channels(tree: Node, ours: int | None) -> Node:
    """Image channels as ours: the data's, and those of a network in proportion, which may predict variances too."""
    if ours is None:
        return tree
    found: list[int] = []

    def counts(node: Node, key: str, value: Any) -> Any:
        if node.name != "Dataset" and getattr(node.target, "UNITS", {}).get(key) == "image_channels":
            found.append(value)
        return value

    transform(tree, counts)

    def change(node: Node, key: str, value: Any) -> Any:
        if getattr(node.target, "UNITS", {}).get(key) != "image_channels":
            return value
        if node.name == "Dataset":
            return ours  # what is stored of an image may be more than the network sees of it
        if value % min(found):
            raise UsageError(f"{node.name}.{key} is {value}, no multiple of the {min(found)} channels of an image")
        return value // min(found) * ours

    return transform(tree, change)


def scaled(value: Any, unit: str, scale: Mapping[str, Any]) -> Any:
    """One value of a unit at a scale. Lists are scaled item by item; None stays None."""
    if value is None:
        return None
    if unit in _REPLACED:
        # 0 classes are no replaced data's: an unconditional network stays one.
        return value if scale[unit] is None or value == 0 else scale[unit]
    if isinstance(value, list):
        return [scaled(item, unit, scale) for item in value]
    if unit in _MAPS:
        return value if not scale[unit] else mapped(unit, value, scale[unit])
    divisor = scale[_DIVISORS[unit]]
    if divisor == 1:
        return value
    result = value / divisor
    if not isinstance(value, int):
        return result
    return max(1, round(result)) if value > 0 else round(result)


def mapped(unit: str, value: int, pairs: Sequence[Sequence[int]]) -> int:
    """A value by linear interpolation between (paper's, ours) pairs, rounded; beyond the pairs an error."""
    points = sorted((int(a), int(b)) for a, b in pairs)
    if not points[0][0] <= value <= points[-1][0]:
        raise UsageError(f"Scale.{unit} maps {points[0][0]} to {points[-1][0]} {_MAPS[unit]}, not {value}")
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= value <= x1:
            return round(y0 + (y1 - y0) * (value - x0) / (x1 - x0))
    return points[0][1]


def check_map(unit: str, pairs: Sequence[Sequence[int]] | None) -> None:
    """Raise unless the map of a unit increases strictly."""
    points = sorted((int(a), int(b)) for a, b in pairs or ())
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 == x1 or y0 >= y1:
            raise UsageError(f"Scale.{unit} must increase strictly: ({x0}, {y0}) and ({x1}, {y1}) do not")


def collisions(full: Mapping[str, Node], small: Mapping[str, Node]) -> list[str]:
    """Values that differ between two rows at full and are the same at the other scale.

    Args:
        full, small: row name -> resolved tree, for the same rows of one column.

    Returns:
        One line a collision: path, the two rows and their values. Replaced things (source, protocol) do not count.
    """
    found = []
    flat_full = {row: flatten(tree) for row, tree in full.items()}
    flat_small = {row: flatten(tree) for row, tree in small.items()}
    rows = list(full)
    for index, first in enumerate(rows):
        for second in rows[index + 1 :]:
            for path in flat_full[first].keys() & flat_full[second].keys():
                before = flat_full[first][path], flat_full[second][path]
                if before[0] == before[1] or path not in flat_small[first] or path not in flat_small[second]:
                    continue
                if flat_small[first][path] == flat_small[second][path]:
                    found.append(
                        f"{path}: {first} {before[0]} and {second} {before[1]} are both {flat_small[first][path]}"
                    )
    return found

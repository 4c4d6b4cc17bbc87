"""Networks as Gin would describe them, class and every argument: they can be built, compared and bound."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from repro import config
from repro.coercion import coerce
from repro.config import Node
from repro.errors import UsageError


class Description(NamedTuple):
    """One of our networks, and noise limits that are set on it once it is built (published arguments of EDM's)."""

    node: Node
    limits: dict[str, float] = {}

    def build(self) -> nn.Module:
        """The network with some weights; within `torch.device("meta")` without memory. ValueError for impossible
        arguments."""
        # Building draws initial values, which a state dict replaces: leave the caller's generator alone.
        with torch.random.fork_rng(devices=[]):
            try:
                net: nn.Module = config.build(self.node)
            except UsageError as error:
                raise ValueError(str(error)) from None
        for key, value in self.limits.items():
            setattr(net, key, float(value))
        return net


def node_of(cls: type[nn.Module], args: Mapping[str, Any]) -> Node:
    """A class with all of its arguments, defaults included. ValueError for one that is missing or of another type."""
    import repro.experiment  # noqa: F401  makes the configurables known; imports this package

    values: dict[str, Any] = {}
    known = config.parameters(cls.__name__)
    for key in args:
        if key not in known:
            raise ValueError(f"{cls.__name__} has no argument {key!r}")
    for key, (hint, default) in known.items():
        value = args.get(key, default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"{cls.__name__} needs the argument {key!r}")
        try:
            values[key] = value if isinstance(value, Node) else coerce(value, hint)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}.{key}: {error}") from None
    return Node(cls.__name__, values, dict.fromkeys(values, "checkpoint"))


def from_json(value: Any) -> Node:
    """The node that `as_json` gave. ValueError for a class or argument that this version does not know."""
    import repro.experiment  # noqa: F401

    name = value.get("class") if isinstance(value, dict) else None
    if name not in config.REGISTRY or not inspect.isclass(config.REGISTRY[name]):
        raise ValueError(f"no network {str(name)[:60]!r}")
    args = {k: from_json(v) if isinstance(v, dict) and "class" in v else v for k, v in value["args"].items()}
    return node_of(config.REGISTRY[name], args)  # type: ignore[arg-type]


def as_json(node: Node) -> dict[str, Any]:
    """Class and every argument, for JSON."""
    args = {key: as_json(value) if isinstance(value, Node) else value for key, value in node.args.items()}
    return {"class": node.name, "args": args}


def as_gin(node: Node) -> list[str]:
    """Bindings that describe the node, the outermost class first."""
    lines, inner = [], []
    for key, value in node.args.items():
        lines.append(f"{node.name}.{key} = " + (f"@{value.name}" if isinstance(value, Node) else repr(value)))
        if isinstance(value, Node):
            inner += as_gin(value)
    return lines + inner

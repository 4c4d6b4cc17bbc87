"""Composing Gin files into one resolved tree, scaling it, hashing it, and building objects from it.

Gin is a notation at the edge: files are parsed once, then everything that decides a result is a tree of `Node`s that
holds *every* constructor argument, defaults included. Objects are built from that tree alone, so nothing can reach a
run that is not in its identity.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util  # gin 0.5 reads it without importing it
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin.config

import gin
from repro import assets
from repro.coercion import coerce
from repro.errors import UsageError
from repro.gin_walk import Statement, expand, read_bindings, read_file, read_text
from repro.suggest import suggest

REGISTRY: dict[str, Callable[..., Any]] = {}


def register(*configurables: Callable[..., Any]) -> None:
    """Make classes and functions known to Gin files under their own names. Each name once."""
    for configurable in configurables:
        name = configurable.__name__
        if REGISTRY.get(name) is configurable:
            continue
        if name in REGISTRY:
            raise ValueError(f"two configurables named {name}")
        REGISTRY[name] = configurable
        gin.register(name, module="repro")(configurable)


@functools.cache
def parameters(name: str) -> dict[str, tuple[Any, Any]]:
    """The configurable parameters of `name`: parameter -> (type hint, default or `inspect.Parameter.empty`).

    Of a class these are all constructor arguments; of a function the keyword-only ones (the others are run-time data).
    """
    target = REGISTRY[name]
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function)
    found = {}
    for parameter in inspect.signature(target).parameters.values():
        if inspect.isclass(target) or parameter.kind is parameter.KEYWORD_ONLY:
            found[parameter.name] = (hints.get(parameter.name, Any), parameter.default)
    return found


@dataclasses.dataclass(frozen=True)
class Node:
    """One configured class or function: its name, every argument, and where each was set (`file:line` or "default")."""

    name: str
    args: dict[str, Any]
    origins: dict[str, str]

    @property
    def target(self) -> Callable[..., Any]:
        """The class or function. A tree that was kept from an earlier command may come before the classes do."""
        if self.name not in REGISTRY:
            importlib.import_module("repro.experiment")
        return REGISTRY[self.name]

    def replace(self, **changes: Any) -> Node:
        """A copy with other arguments. Raises UsageError for an unknown one."""
        unknown = set(changes) - set(self.args)
        if unknown:
            raise UsageError(f"{self.name} has no parameter {sorted(unknown)[0]!r}")
        return dataclasses.replace(self, args={**self.args, **changes})


class Composition:
    """A parsed configuration: Gin files in order, then single bindings; later ones win.

    Args:
        files: paths relative to the Gin root, such as 'edm/table2/f.gin'. The last file's own lines are the row's.
        bindings: texts of `--gin`, such as 'Trajectory.batch = 64'.
        strict: files whose own lines must all be used (the row's).
        folder: the root that paths and includes are relative to, if not `gin/`.
        text: an expanded configuration that takes the place of the files' content; they only name its origin.
    """

    def __init__(
        self,
        files: Sequence[str],
        bindings: Sequence[str] = (),
        strict: Sequence[str] = (),
        folder: Path | None = None,
        text: str | None = None,
    ) -> None:
        root = folder or assets.gin_dir()
        self.files = list(files)
        self.bindings = list(bindings)
        self.strict = set(strict)
        self.statements: list[Statement] = []
        if text is None:
            for file in files:
                self.statements += read_file(root, file)
            text = "\n".join(expand(root, file) for file in files)
        else:
            self.statements += read_text(text, ", ".join(files))
        self.statements += read_bindings(bindings)
        self._validate()
        self._origin = {s.key: s.location for s in self.statements}
        self._used: set[tuple[str, str, str]] = set()
        gin.clear_config()
        gin.parse_config(text)
        gin.parse_config(list(bindings))
        self.text = gin.config_str()

    def _validate(self) -> None:
        """Every name in every statement must exist; a typo names file, line and the nearest valid name."""
        for statement in self.statements:
            if statement.is_macro:
                continue
            if statement.selector not in REGISTRY:
                raise UsageError(
                    f"{statement.location}: no configurable {statement.selector!r}"
                    f"{suggest(statement.selector, REGISTRY)}"
                )
            known = parameters(statement.selector)
            if statement.arg not in known:
                hint = suggest(statement.arg, known)
                raise UsageError(f"{statement.location}: {statement.selector} has no parameter {statement.arg!r}{hint}")
        macros = {s.selector for s in self.statements if s.is_macro}
        for statement in self.statements:
            for kind, name in statement.references:
                valid = macros if kind == "macro" else set(REGISTRY)
                if name not in valid:
                    mark = "%" if kind == "macro" else "@"
                    raise UsageError(f"{statement.location}: {mark}{name} is not defined{suggest(name, valid)}")

    def root(self, name: str) -> Node:
        """The resolved tree under the configurable `name`."""
        return self._node(name, ())

    def check_used(self) -> None:
        """Raise for a line of `--gin`, or of a strict file, that nothing in the resolved trees uses."""
        for statement in self.statements:
            if not (statement.file in self.strict or statement.file == "--gin"):
                continue
            if statement.key not in self._used:
                raise UsageError(
                    f"{statement.location}: nothing uses {statement.display}; "
                    "remove the line, or bind what this cell is made of"
                )

    def _node(self, name: str, scopes: tuple[str, ...]) -> Node:
        bound = gin.get_bindings("/".join([*scopes, name]), resolve_references=False)
        args: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for parameter, (hint, default) in parameters(name).items():
            if parameter in bound:
                origins[parameter] = self._macro_origin(bound[parameter]) or self._use(scopes, name, parameter)
                self._use(scopes, name, parameter)
                value = self._resolve(bound[parameter], scopes)
            elif default is inspect.Parameter.empty:
                raise UsageError(f"{name}.{parameter} is not set by {', '.join(self.files) or 'any file'} or --gin")
            else:
                origins[parameter] = "default"
                value = default
            try:
                args[parameter] = coerce(value, hint)
            except TypeError as error:
                raise UsageError(f"{origins[parameter]}: {name}.{parameter}: {error}") from None
        return Node(name, args, origins)

    def _use(self, scopes: tuple[str, ...], name: str, parameter: str) -> str:
        """Mark the statement that wins as used and return its location."""
        for depth in range(len(scopes), -1, -1):
            key = ("/".join(scopes[:depth]), name, parameter)
            if key in self._origin:
                self._used.add(key)
                return self._origin[key]
        return "gin"

    def _macro_origin(self, value: Any) -> str:
        """Where the macro that a binding names was set, with its name; '' where it names none."""
        if not (isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro"):
            return ""
        macro = value.scopes[-1]
        return f"{self._origin.get(('', macro, ''), 'gin')} (%{macro})"

    def _resolve(self, value: Any, scopes: tuple[str, ...]) -> Any:
        if isinstance(value, gin.config.ConfigurableReference):
            if value.selector == "gin.macro":
                macro = value.scopes[-1]
                self._used.add(("", macro, ""))
                inner = gin.get_bindings(f"{macro}/gin.macro", resolve_references=False)["value"]
                return self._resolve(inner, scopes)
            # A scope that a reference names takes the place of the one that it stands in, as in Gin itself.
            return self._node(value.selector.split(".")[-1], tuple(value.scopes) or scopes)
        if isinstance(value, list | tuple):
            return [self._resolve(item, scopes) for item in value]
        if isinstance(value, dict):
            return {key: self._resolve(item, scopes) for key, item in value.items()}
        return value


def transform(value: Any, change: Callable[[Node, str, Any], Any]) -> Any:
    """A copy of a tree with `change(node, parameter, value)` applied to every argument, inner ones first."""
    if isinstance(value, Node):
        args = {key: change(value, key, transform(item, change)) for key, item in value.args.items()}
        return dataclasses.replace(value, args=args)
    if isinstance(value, list):
        return [transform(item, change) for item in value]
    return value


def to_plain(value: Any) -> Any:
    """A tree as JSON-ready values that `from_plain` turns back."""
    if isinstance(value, Node):
        return {"node": value.name, "args": to_plain(value.args), "origins": value.origins}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(value: Any) -> Any:
    """The tree that `to_plain` was given."""
    if isinstance(value, dict):
        inner = {key: from_plain(item) for key, item in value.items()}
        return Node(inner["node"], inner["args"], inner["origins"]) if "node" in inner else inner
    return [from_plain(item) for item in value] if isinstance(value, list) else value


def canonical(value: Any) -> Any:
    """The JSON-ready form that is hashed: class, revision and every argument but those at their neutral value."""
    if isinstance(value, Node):
        neutral = getattr(value.target, "NEUTRAL", {})
        args = {k: canonical(v) for k, v in value.args.items() if not (k in neutral and neutral[k] == v)}
        return {"class": value.name, "revision": getattr(value.target, "REVISION", 1), "args": args}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    return value


def build(value: Any) -> Any:
    """The object that a tree describes: classes are constructed, functions bound with `functools.partial`.

    Raises:
        UsageError: a class refuses its arguments, or fails of them; where the message names one, it begins with who
            set that.
    """
    if isinstance(value, Node):
        kwargs = {key: build(item) for key, item in value.args.items()}
        if not inspect.isclass(value.target):
            return functools.partial(value.target, **kwargs)
        try:
            return value.target(**kwargs)
        except UsageError as error:
            named = (key for key in value.args if str(error).startswith(f"{value.name}.{key} "))
            origin = value.origins.get(next(named, ""), "default")
            raise UsageError(str(error) if origin == "default" else f"{origin}: {error}") from None
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise UsageError(f"{value.name} cannot be made of its arguments: {kind}{error}") from error
    if isinstance(value, list):
        return [build(item) for item in value]
    return value


def build_on_meta(denoiser: Node) -> Any:
    """A denoiser on the meta device, in evaluation mode: its form and cost can be asked, and no weight takes memory.

    Equal ones are built once a process, because plans ask often: whoever gets it must leave it as it is.
    """
    return _on_meta(json.dumps(to_plain(denoiser), sort_keys=True))


@functools.lru_cache(maxsize=256)
def _on_meta(told: str) -> Any:
    import torch  # heavy

    with torch.device("meta"):
        net = build(from_plain(json.loads(told))).eval()
    return net.to("meta")  # tables that were computed on the CPU, too


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as {dotted path: plain value}; the class of an inner node stands under its own path."""
    if isinstance(value, Node):
        flat: dict[str, Any] = {prefix: value.name} if prefix else {}
        for key, item in value.args.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
        return flat
    return {prefix: value}


def flatten_origins(node: Node, prefix: str = "") -> dict[str, str]:
    """Where each dotted path of `flatten` was set: `file:line`, `--gin` or "default"."""
    flat: dict[str, str] = {}
    for key, item in node.args.items():
        path = f"{prefix}.{key}" if prefix else key
        flat[path] = node.origins[key]
        if isinstance(item, Node):
            flat |= flatten_origins(item, path)
    return flat

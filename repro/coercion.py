"""Checking a configured value against the type that a parameter declares, so that 1 and 1.0 have one identity."""

from __future__ import annotations

import collections.abc
import types
import typing
from typing import Any


def coerce(value: Any, hint: Any) -> Any:
    """`value` in the form that `hint` declares: an int for a float becomes a float, a tuple a list.

    Raises:
        TypeError: the value is of another type ("expected an integer, not 'abc'").
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if _is_tree(value):
        return _checked_tree(value, hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise TypeError(f"expected one of {', '.join(map(repr, typing.get_args(hint)))}, not {value!r}")
        return value
    if origin in (list, tuple, collections.abc.Sequence):
        return _coerce_sequence(value, hint)
    return _coerce_plain(value, hint)


def _is_tree(value: Any) -> bool:
    return hasattr(value, "origins") and hasattr(value, "args")


def _checked_tree(value: Any, hint: Any) -> Any:
    """A configured class where the hint names classes that it is one of; nothing is known of functions' hints."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = [option for option in (typing.get_args(hint) if union else [hint]) if option is not type(None)]
    if not all(isinstance(option, type) and not getattr(option, "_is_protocol", False) for option in options):
        return value
    target = value.target
    if not (isinstance(target, type) and issubclass(target, tuple(options))):
        expected = " or ".join(f"@{option.__name__}" for option in options[:3])
        raise TypeError(f"expected a reference such as {expected}, not @{value.name}")
    return value


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    error = TypeError(f"unexpected {value!r}")
    for option in options:
        if option is type(None):
            continue
        try:
            return coerce(value, option)
        except TypeError as caught:
            error = caught
    raise error


def _coerce_sequence(value: Any, hint: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, not {value!r}")
    inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    if len(inner) <= 1:
        return [coerce(item, inner[0] if inner else Any) for item in value]
    if len(inner) != len(value):
        raise TypeError(f"expected {len(inner)} values, not {len(value)}")
    return [coerce(item, kind) for item, kind in zip(value, inner, strict=True)]


def _coerce_plain(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise TypeError(f"expected True or False, not {value!r}")
    if hint is int:
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
        raise TypeError(f"expected an integer, not {value!r}")
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise TypeError(f"expected a number, not {value!r}")
    if hint is str:
        if isinstance(value, str):
            return value
        raise TypeError(f"expected a string, not {value!r}")
    if isinstance(value, str | int | float | list | tuple) or value is None:
        name = getattr(hint, "__name__", str(hint))
        what = "a dictionary" if typing.get_origin(hint) is dict else f"a reference such as @{name}"
        raise TypeError(f"expected {what}, not {value!r}")
    return value

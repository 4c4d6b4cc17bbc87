"""Errors that a user meets: one clear line each, and the exit code of the command that met it."""

from __future__ import annotations


class ReproError(Exception):
    """Base of all expected errors. `str(error)` is one line: what is wrong, where, what would be right."""

    exit_code: int = 2


class UsageError(ReproError):
    """A user's mistake: a flag, a binding or a value that cannot be right."""

    exit_code = 2


class MissingPrerequisite(ReproError):
    """Things that have to be fetched or prepared first (weights, data, GPU), one argument each, which says how."""

    exit_code = 3

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


class CorruptData(ReproError):
    """Stored data are not what their manifest says; the message names the file."""

    exit_code = 2


class CheckFailed(ReproError):
    """A check ran to its end and found numbers that moved."""

    exit_code = 1


def positive(name: str, value: float) -> float:
    """The same value. UsageError, which names it, where it is not above 0."""
    if not value > 0:
        raise UsageError(f"{name} must be above 0, not {value:g}")
    return value

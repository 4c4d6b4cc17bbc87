"""What a verb says on a terminal while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
INTERVAL = 10.0
"""Seconds between lines where standard error is no terminal."""


def status_line(text: str) -> None:
    """Replace the last line of the terminal; nothing where standard error is none. '' clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The same items, while the last line of the terminal (elsewhere a line now and then) says how many are done.

    what: of them, such as 'fingerprints'.
    """
    last = time.monotonic()
    for done, item in enumerate(items):
        status_line(f"{done}/{total} {what}")
        if time.monotonic() - last > INTERVAL and not sys.stderr.isatty():
            last = time.monotonic()
            print(f"{done}/{total} {what}", file=sys.stderr, flush=True)
        yield item
    status_line("")

"""What a verb says on a terminal while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
INTERVAL = 10.0
"""Seconds between lines where standard error is no terminal."""


_since: float | None = None
"""When the last line was printed, or the work began, where standard error is no terminal; None while nothing works."""


def status_line(text: str) -> None:
    """Replace the last line of the terminal; '' clears it. Elsewhere a line of its own, after every ten seconds."""
    global _since
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif not text or _since is None:
        _since = time.monotonic() if text else None
    elif time.monotonic() - _since > INTERVAL:
        _since = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The same items, while a `status_line` says how many are done.

    what: of them, such as 'fingerprints'.
    """
    for done, item in enumerate(items):
        status_line(f"{done}/{total} {what}")
        yield item
    status_line("")

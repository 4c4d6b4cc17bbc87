"""What a verb says on a terminal while it works."""

from __future__ import annotations

import sys


def status_line(text: str) -> None:
    """Replace the last line of the terminal; nothing where standard error is none. '' clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

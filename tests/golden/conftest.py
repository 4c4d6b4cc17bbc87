"""Command-line option of the golden cases."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=None,
        help="run the golden cases (*.npz) under DIR instead of the committed ones; no failure is expected there",
    )

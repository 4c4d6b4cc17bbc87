"""Compiled graphs as a way of execution."""

from __future__ import annotations

import os
import shutil

from torch import nn

from repro.errors import MissingPrerequisite


def compile_network(network: nn.Module, device: str) -> None:
    """Compile a network's graphs in place; keys and values of its state stay as they are.

    Raises:
        MissingPrerequisite: kernels for a CPU need a C++ compiler, and there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        raise MissingPrerequisite(
            f"Execution.compile on a CPU needs the C++ compiler {compiler}: install it, or set CXX to another"
        )
    network.compile()

"""`repro clean`: free the disk of what nothing needs. A dry run by default."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from repro.errors import MissingPrerequisite
from repro.verbs.computing import folders
from repro.verbs.terminal import status_line


def run(options: argparse.Namespace) -> int:
    """List what could go; with --yes remove it."""
    where = folders(options, write=False)
    if not where.runs.is_dir():
        raise MissingPrerequisite(f"no folder {where.runs}; --runs names another")
    from repro.launch.clean import remove, survey  # imports torch

    found = survey(where.runs, status_line)
    status_line("")
    lines: list[dict[str, Any]] = []
    for run in found:
        reasons = Counter(why for _, why in run.files)
        state = run.kept or ("would be freed" if run.files else "nothing to free")
        freed = run.bytes
        if options.yes and run.files:
            state = "freed" if remove(run) else "a living process works on it: left alone"
        lines.append({"run": run.run.name, "bytes": freed, "files": dict(reasons), "state": state})
    if options.json:
        print(json.dumps(lines, indent=1))
        return 0
    for line in lines:
        what = "; ".join(f"{count} times {why}" for why, count in line["files"].items())
        print(f"{line['run']}  {line['bytes'] / 1e6:9.1f} MB  {line['state']}{': ' + what if what else ''}")
    total = sum(line["bytes"] for line in lines) / 1e6
    print(f"{total:.1f} MB {'freed' if options.yes else 'could be freed; --yes frees them'} in {where.runs}")
    return 0

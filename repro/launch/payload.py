"""What a SLURM job is told: everything by name, number or text, nothing by object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro import __version__, assets
from repro.launch.plan import Folders
from repro.launch.submissions import Member, job_from_plain, job_to_plain


def payload(member: Member, folders: Folders, requeue: str) -> str:
    """The text that a worker gets."""
    return json.dumps(
        {
            "submission": str(member.folder),
            "array": member.array,
            "index": member.index,
            "of": member.of,
            "stage": member.stage,
            "job": job_to_plain(member.job),
            "runs": str(folders.runs),
            "also": [str(folder) for folder in folders.also],
            "data": str(folders.data),
            "weights": str(folders.weights) if folders.weights else None,
            "requeue": requeue,
            "version": __version__,
            "sources": assets.sources_sha256(),
        }
    )


def member_of(payload: Mapping[str, Any]) -> Member:
    """The member that a payload is of."""
    job = job_from_plain(payload["job"])
    place = (Path(payload["submission"]), payload["array"], payload["index"], payload["of"])
    return Member(*place, payload["stage"], job)


def folders_of(payload: Mapping[str, Any]) -> Folders:
    """The folders that a payload names."""
    weights = payload["weights"]
    also = tuple(Path(folder) for folder in payload["also"])
    return Folders(Path(payload["runs"]), also, Path(payload["data"]), Path(weights) if weights else None)

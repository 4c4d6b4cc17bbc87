"""SLURM's programs as far as repro asks them, on files of a folder: `python fake_slurm.py PROGRAM FOLDER ARGUMENTS`.

FOLDER/jobs.json: job or array member -> {"state", "reason", "node", "comment"}; a test changes it as SLURM would.
FOLDER/calls: one line a call. FOLDER/refuse: if there, sbatch refuses with this text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
FIRST = 100


def install(folder: Path) -> Path:
    """Put the programs into a folder for PATH; returns that folder."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {folder} "$@"\n')
        path.chmod(0o755)
    write(folder, {})
    return programs


def read(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "jobs.json").read_text())
    return found


def write(folder: Path, jobs: dict[str, dict[str, Any]]) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))


def change(folder: Path, job: str, **facts: Any) -> None:
    """Change what SLURM knows of a job."""
    jobs = read(folder)
    jobs[job] |= facts
    write(folder, jobs)


def sbatch(folder: Path, words: list[str]) -> int:
    if (folder / "refuse").exists():
        print((folder / "refuse").read_text(), file=sys.stderr)
        return 1
    script = Path(words[-1]).read_text()
    jobs = read(folder)
    number = max([FIRST, *(int(job.split("_")[0]) + 1 for job in jobs)])
    comment = re.search(r"--comment=(\S+)", script)
    array = re.search(r"--array=0-(\d+)", script)
    facts = {"state": "PENDING", "reason": "Priority", "node": "", "comment": comment.group(1) if comment else ""}
    for index in range(int(array.group(1)) + 1) if array else [None]:
        jobs[f"{number}" if index is None else f"{number}_{index}"] = facts
    write(folder, jobs)
    (folder / f"script-{number}.sh").write_text(script)
    print(f"Submitted batch job {number}")
    return 0


def squeue(folder: Path, words: list[str]) -> int:
    for job, facts in read(folder).items():
        if facts["state"] not in ENDED:
            print(f"{job}|{facts['state']}|{facts['reason']}|{facts['node']}|0:01|{facts['comment']}")
    return 0


def sacct(folder: Path, words: list[str]) -> int:
    if (folder / "no-accounting").exists():
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    wanted = words[words.index("-j") + 1].split(",")
    for job, facts in read(folder).items():
        if job.split("_")[0] in wanted:
            print(f"{job}|{facts['state']}|{facts.get('code', '0:0')}")
    return 0


def scancel(folder: Path, words: list[str]) -> int:
    jobs = read(folder)
    for job in jobs:
        if job in words or job.split("_")[0] in words:
            jobs[job]["state"] = "CANCELLED"
    write(folder, jobs)
    return 0


def scontrol(folder: Path, words: list[str]) -> int:
    if words[:2] == ["show", "config"]:
        print(f"ClusterName             = fake\nMaxArraySize            = {max_array(folder)}")
        return 0
    if words[0] == "requeue":
        change(folder, words[1], state="PENDING", reason="BeginTime")
        return 0
    jobs = read(folder)
    chosen = [word for word in words if word.isdigit()]
    if chosen and not any(job.split("_")[0] == chosen[0] for job in jobs):
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    for job, facts in jobs.items():
        array = f" ArrayJobId={job.split('_')[0]} ArrayTaskId={job.split('_')[1]}" if "_" in job else ""
        restarts = facts.get("restarts", 0)
        print(f"JobId={job.split('_')[0]}{array} JobName=x JobState={facts['state']} Restarts={restarts} Comment=x")
    return 0


def max_array(folder: Path) -> str:
    path = folder / "max-array"
    return path.read_text() if path.exists() else "1001"


def sinfo(folder: Path, words: list[str]) -> int:
    if "main" not in words:
        return 0
    print("4|4|4096|gpu:2(S:0)|1-00:00:00")
    return 0


if __name__ == "__main__":
    place = Path(sys.argv[2])
    with open(place / "calls", "a") as stream:
        stream.write(" ".join([sys.argv[1], *sys.argv[3:]]) + "\n")
    sys.exit(globals()[sys.argv[1]](place, sys.argv[3:]))

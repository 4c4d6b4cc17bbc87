"""What the batch script of a SLURM job calls after srun: a killed process cannot say itself how it ended.

python -m repro.launch.slurm_end EXIT_CODE SUBMISSION ARRAY
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from repro.errors import ReproError
from repro.launch import attempts, slurm
from repro.launch.submissions import Member, read

LOG_BYTES = 65536
END_SECONDS = 120.0
MEMORY = re.compile(r"exceeded memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)


def main(words: list[str]) -> int:
    """Write down the end of a run that left none, and queue the job again where that makes sense."""
    code, folder, array = int(words[0]), Path(words[1]), words[2]
    if code == 0:
        return 0
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    submission = read(folder)
    member = next(m for m in submission.members() if (m.array, m.index) == (array, index))
    restart = attempts.restart_count()
    if any(run.restart == restart and run.ended for run in attempts.history(member)):
        return code
    runs = folder.parent.parent
    at = attempts.position(runs, member)
    if not any(run.restart == restart for run in attempts.history(member)):
        attempts.begin(member, at)  # the process did not come that far
    attempts.end(member, "killed", at, reason(member, code, restart), exit_code=code)
    if submission.facts["cluster"]["requeue"] != "always" or member.name in submission.cancelled():
        return code
    if attempts.poison(attempts.history(member)) or not running():
        return code
    slurm.ask("scontrol", "requeue", attempts.job_id())
    time.sleep(END_SECONDS)  # SLURM ends the script
    return code


def reason(member: Member, code: int, restart: int) -> str:
    """Why srun ended with this code, as far as other processes and its log say."""
    if said := attempts.rank_message(member, restart):
        return said
    job = attempts.job_id()
    log = member.folder / member.array / job / f"{job}_0_log.err"
    try:
        text = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    if MEMORY.search(text.rpartition("submitit")[2]):
        return "its process was killed: out of memory (raise Cluster.mem_gb)"
    how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return f"its process died ({how})"


def running() -> bool:
    """Whether SLURM still counts this job as running: one that was cancelled, or met its limit, must not come back."""
    done = slurm.call("scontrol", "show", "job", "--oneliner", os.environ.get("SLURM_JOB_ID", ""))
    mine = f"JobId={os.environ.get('SLURM_JOB_ID', '')} "
    return any("JobState=RUNNING" in line for line in done.stdout.splitlines() if line.startswith(mine))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ReproError as error:
        print(f"repro: {error}", file=sys.stderr)
        sys.exit(int(sys.argv[1]))

"""What submitit pickles and a compute node runs first. Small at import: signals must be in place before torch is."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any


class Asked:
    """What signals have asked of this process; the work looks at it after every step.

    USR2 (SLURM, before the time limit or on preemption): save the state, then queue again. TERM (scancel, or a
    preemption that does not send USR2): save the state; what becomes of the job is SLURM's to say.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.requeue = False

    def install(self) -> None:
        """Take the signals over from submitit, which would end the process in the middle of a step."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, self._on_user_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2,))  # blocked since before Python started

    def is_set(self) -> bool:
        return self._stop.is_set()

    def _on_term(self, *_: object) -> None:
        self._stop.set()

    def _on_user_signal(self, *_: object) -> None:
        self.requeue = True
        self._stop.set()


class Call:
    """A job as text, nothing else: what it means is parsed anew where it runs."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self) -> str:
        asked = Asked()
        asked.install()
        remove_unfinished_result()
        from repro.launch.slurm_job import run  # heavy

        return run(json.loads(self.text), asked)

    def checkpoint(self) -> Any:
        """For submitit, should a signal come before this object took over: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Call(self.text))


def remove_unfinished_result() -> None:
    """Remove what an earlier run of this job, lost with its node, left of its result: submitit writes none over it."""
    from submitit import JobEnvironment

    path = JobEnvironment().paths.result_pickle
    path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)


BLOCKING = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Program that starts Python with USR2 blocked: the signal waits until someone can handle it, and kills nothing."""

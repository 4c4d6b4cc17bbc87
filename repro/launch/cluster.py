"""Cluster profiles: what a user says once about a SLURM cluster, in a Gin file of `slurm/` or of their own."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from repro import assets
from repro.config import Composition, build, register
from repro.errors import UsageError
from repro.suggest import suggest

Requeue = Literal["always", "interrupted", "never"]
OWN_OPTIONS = frozenset("array chdir comment dependency error job-name open-mode output requeue signal wckey".split())


@dataclasses.dataclass
class Cluster:
    """How jobs are run on a SLURM cluster, and what its GPUs are good for and cost. None leaves SLURM's own default.

    Args:
        partition: where jobs go, or several with commas.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have, such as 'a100'.
        nodes: nodes a training run.
        gpus_per_node: GPUs on each; one process a GPU.
        tasks_per_node: processes a node without GPUs (default one); with GPUs there is one a GPU.
        cpus: cores a process.
        mem_gb: memory a node in GB.
        timeout: time limit of a job in minutes. At the limit a job saves its state and queues again.
        evaluation_nodes: nodes of an evaluation job; they are as those of training.
        evaluation_jobs: jobs that the evaluations of one trajectory are dealt to.
        array_parallelism: members of one job array that run at a time; trainings and evaluations are arrays of their
            own, and may overlap.
        array_size: greatest number of members of an array; SLURM's own MaxArraySize holds too.
        requeue: after which ends a job queues again by itself: `always` (preemption, time limit, lost node, a killed or
            failed process; not after the same failure twice at the same step), `interrupted` (preemption, time limit,
            lost node) or `never`.
        signal_delay: seconds before the time limit at which jobs are told to save their state.
        setup: shell commands before the work, such as 'module load cuda'; their directory changes do not matter.
        environment: variables of the jobs.
        container: words before the interpreter, such as 'apptainer exec --nv repro.sif'. (Of pyxis: see `srun`.)
        python: the interpreter that has repro, if not the one that submits.
        srun: more options of srun, such as '--container-image=repro.sqsh'.
        sbatch: more options of sbatch by name, such as {'reservation': 'july'}.
        shared: folders that every node sees; where there are any, runs and data must lie in one of them.
        flops: sustained FLOP/s of one GPU for these networks, for `repro plan`.
        price: of one GPU for one hour.
        currency: of the price.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus: int = 1
    mem_gb: float | None = None
    timeout: int = 60
    evaluation_nodes: int = 1
    evaluation_jobs: int = 1
    array_parallelism: int = 100
    array_size: int = 1000
    requeue: Requeue = "always"
    signal_delay: int = 120
    setup: Sequence[str] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    container: str | None = None
    python: str | None = None
    srun: Sequence[str] = ()
    sbatch: dict[str, str] = dataclasses.field(default_factory=dict)
    shared: Sequence[str] = ()
    flops: float = 30e12
    price: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        least = {"gpus_per_node": 0, "signal_delay": 1, "price": 0}
        at_least_one = ("nodes", "tasks_per_node", "cpus", "mem_gb", "timeout", "evaluation_nodes", "evaluation_jobs")
        least |= {name: 1 for name in (*at_least_one, "array_parallelism", "array_size", "flops")}
        least["mem_gb"] = 0
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise UsageError(f"Cluster.{name} must be {limit} or more, not {value}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"Cluster.{name} must be finite, not {value}")
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise UsageError(
                f"Cluster.tasks_per_node is {self.tasks_per_node} beside {self.gpus_per_node} GPUs a node: it is for "
                "nodes without GPUs, on others a process has a GPU each"
            )
        if self.signal_delay >= 60 * self.timeout:
            raise UsageError(
                f"Cluster.signal_delay of {self.signal_delay} s leaves nothing of a timeout of {self.timeout} min"
            )
        self._check_texts()

    def _check_texts(self) -> None:
        for name in ("partition", "account", "qos", "constraint"):
            if getattr(self, name) == "":
                raise UsageError(f"Cluster.{name} is empty: leave it out for SLURM's own default")
        for text in (*self.environment.items(), *self.sbatch.items()):
            if not all(isinstance(part, str) for part in text):
                raise UsageError(f"Cluster.environment and Cluster.sbatch map strings to strings, not {text}")
        for name in self.environment:
            if not name.isidentifier():
                raise UsageError(f"Cluster.environment has {name!r}, which is no name of a variable")
        for name in self.sbatch:
            if name in OWN_OPTIONS:
                raise UsageError(f"Cluster.sbatch has {name!r}, which repro sets itself")
            if not re.fullmatch("[a-z][a-z-]*", name):
                raise UsageError(f"Cluster.sbatch has {name!r}: write a long option without its dashes")

    @property
    def processes(self) -> int:
        """Processes on a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def gpus(self, nodes: int) -> int:
        """GPUs of a job on some nodes; one where the profile has none: its processes then stand for them."""
        return nodes * (self.gpus_per_node or self.processes)


register(Cluster)


def cluster_names() -> list[str]:
    """Names of the profiles in `slurm/`."""
    return sorted(path.stem for path in assets.slurm_dir().glob("*.gin"))


def load_cluster(name: str) -> Cluster:
    """The profile of a name in `slurm/`, or of a Gin file's path.

    Raises:
        UsageError: there is none; or its text is wrong, with file, line and the nearest valid key.
    """
    file = Path(name).expanduser()
    if file.suffix != ".gin":
        if name not in cluster_names():
            raise UsageError(
                f"no cluster profile {name!r}{suggest(name, cluster_names())} (a name in {assets.slurm_dir()}, or a "
                "path that ends in .gin)"
            )
        file = assets.slurm_dir() / f"{name}.gin"
    if not file.is_file():
        raise UsageError(f"no cluster profile {file}: the file does not exist")
    composition = Composition([file.name], strict=[file.name], folder=file.parent)
    tree = composition.root("Cluster")
    composition.check_used()
    cluster: Cluster = build(tree)
    return cluster

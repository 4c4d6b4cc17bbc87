"""submit, status, logs and cancel on a pretended SLURM: what is asked of it, and what its answers mean."""

from __future__ import annotations

import json
import os
import pickletools
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_slurm
import pytest
from helpers import CELL, SIBLING, TINY, compute, data_dir, environment

from repro.cli import main
from repro.errors import MissingPrerequisite, UsageError
from repro.launch import attempts, slurm
from repro.launch.cluster import load_cluster
from repro.launch.submissions import Member, read_all

TABLE = "edm/table2"
OPTIONS = ["--scale", "ci", "--rows", "e", "f", "--columns", "cifar10-cond-vp"]
GIN = [word for binding in TINY for word in ("--gin", binding)]


class Here:
    """The command line with a profile, in a folder."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs = tmp_path / "runs"
        self.profile = tmp_path / "mine.gin"
        self.capsys = capsys
        self.set(partition="main", timeout=30)

    def set(self, **settings: Any) -> None:
        self.profile.write_text("\n".join(f"Cluster.{key} = {value!r}" for key, value in settings.items()))

    def submit(self, *more: str) -> tuple[int, str, str]:
        words = ["submit", TABLE, *OPTIONS, *GIN, "--cluster", str(self.profile), "--data", str(data_dir())]
        return self(*words, *more)

    def status(self) -> dict[str, dict[str, Any]]:
        _, out, _ = self("status", "--json")
        return {state["cell"]: state for state in json.loads(out)}

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main([*words, "--runs", str(self.runs)])
        out, err = self.capsys.readouterr()
        return code, out, err

    def members(self) -> dict[str, Member]:
        return {member.name: member for member in read_all([self.runs])[-1].members()}


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str], fake: Path) -> Here:
    return Here(tmp_path, capsys)


def calls(fake: Path, program: str) -> list[str]:
    return [line for line in (fake / "calls").read_text().splitlines() if line.split()[0] == program]


def end(member: Member, monkeypatch: pytest.MonkeyPatch, kind: attempts.Kind, **more: Any) -> None:
    """What a run of a member leaves behind."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    at = (0, 0, 0)
    attempts.begin(member, at)
    attempts.end(member, kind, at, **more)
    monkeypatch.delenv("SLURM_JOB_ID")


def test_trainings_are_an_array_and_evaluations_wait_for_them(here: Here, fake: Path) -> None:
    code, out, _ = here.submit()
    assert code == 0 and "submitted 2 trajectories with 2 evaluations, as jobs 100 (train0), 101 (evaluate0)" in out
    train, evaluate = ((fake / f"script-{number}.sh").read_text() for number in (100, 101))
    assert "#SBATCH --array=0-1%2" in train and "#SBATCH --signal=USR2@120" in train and "--requeue" in train
    assert "#SBATCH --dependency=aftercorr:100" in evaluate and "--kill-on-invalid-dep=yes" in evaluate
    assert {state["state"] for state in here.status().values()} == {"pending"}
    assert "2 pending" in here("status")[1] and "Priority" in here("status", TABLE)[1]


def test_the_dry_run_prints_what_sbatch_would_get_and_asks_nothing(here: Here, fake: Path) -> None:
    code, out, _ = here.submit("--dry-run")
    assert code == 0 and not (fake / "calls").exists() and not here.runs.exists()
    here.submit()
    submission = read_all([here.runs])[0]
    sent = (fake / "script-100.sh").read_text()
    shown = re.split(r"^# \w+: \d+ jobs$", out, flags=re.MULTILINE)[1]
    assert shown.strip() == sent.replace(submission.id, "SUBMISSION").strip()


def test_a_job_carries_text_only(here: Here) -> None:
    here.submit()
    pickles = sorted(here.runs.glob("submissions/*/train0/*/*_submitted.pkl"))
    assert len(pickles) == 2
    names = {
        f"{value}"
        for operation, value, _ in pickletools.genops(pickles[0].read_bytes())
        if operation.name in ("GLOBAL", "SHORT_BINUNICODE") and str(value).startswith(("repro.", "gin", "torch"))
    }
    assert names == {"repro.launch.slurm_worker"}


def test_submitting_twice_submits_nothing_twice(here: Here, fake: Path) -> None:
    here.submit()
    code, out, err = here.submit()
    assert code == 0 and out == "" and "nothing submitted" in err and err.count("is pending as job 100_") == 2
    assert len(calls(fake, "sbatch")) == 2


def test_a_guide_in_work_for_an_earlier_submission_is_waited_for(here: Here, fake: Path) -> None:
    def submit(row: str) -> tuple[int, str, str]:
        words = ["edm2/table2", "--rows", row, "--scale", "ci", "--data", str(data_dir())]
        return here("submit", *words, "--cluster", str(here.profile))

    def waits() -> list[str]:
        scripts = sorted(fake.glob("script-*.sh"), key=lambda path: int(path.stem.split("-")[1]))
        return re.findall(r"--dependency=(\S+)", "\n".join(path.read_text() for path in scripts))

    submit("xs-cfg")
    (guide,) = [m for m in here.members().values() if m.stage == "train" and not m.job.tasks]
    job = guide.job_id(str(read_all([here.runs])[0].number(guide.array, {})))
    first = waits()
    code, out, err = submit("s-cfg")
    assert code == 0 and "submitted 1 trajectory with 1 evaluation," in out
    assert f"guide of s-cfg/imagenet512 seed 0: is pending as job {job}" in err
    (own,) = waits()[len(first) :]
    assert own.split(",")[1:] == [f"afterok:{job}"] and read_all([here.runs])[1].arrays[1].earlier == (job,)


def test_what_is_done_is_not_submitted(here: Here, fake: Path) -> None:
    compute(here.runs)
    here.submit()
    assert [state["cell"] for state in here.status().values()] == [SIBLING]
    compute(here.runs)
    here("cancel", "--all")
    assert len(calls(fake, "sbatch")) == 2  # a list of one is no array
    assert "#SBATCH --array" not in (fake / "script-100.sh").read_text()
    assert "--dependency=afterok:100" in (fake / "script-101.sh").read_text()


def test_only_evaluations_are_left_of_what_is_trained(here: Here, fake: Path) -> None:
    compute(here.runs)
    for record in here.runs.rglob("record.json"):
        record.unlink()
    here.set(partition="main")
    code, out, _ = here("submit", TABLE, "--scale", "ci", "--rows", "f", "--columns", "cifar10-cond-vp", *GIN,
                        "--cluster", str(here.profile), "--data", str(data_dir()))  # fmt: skip
    assert code == 0 and "evaluate0" in out and "train0" not in out
    assert "--dependency" not in (fake / "script-100.sh").read_text()


def test_what_failed_is_named_and_submitted_again_only_on_retry(
    here: Here, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.submit()
    for job in ("100_0", "101_0"):
        fake_slurm.change(fake, job, state="FAILED", code="1:0")
    end(here.members()["train0-0"], monkeypatch, "failed", message="NonFiniteLoss: nan at step 3", exit_code=1)
    states = here.status()
    failed = next(name for name, state in states.items() if state["state"] == "failed")
    assert states[failed]["reason"] == "NonFiniteLoss: nan at step 3"
    assert here("status")[0] == 1
    code, out, err = here.submit()
    assert code == 1 and "failed (job 100_0): NonFiniteLoss: nan at step 3" in err and "add --retry" in err
    code, out, _ = here.submit("--retry")
    assert code == 0 and "submitted 1 trajectory" in out
    assert here.status()[failed]["state"] == "pending"


def test_cancelling_asks_once_and_is_remembered(here: Here, fake: Path) -> None:
    here.submit()
    code, out, _ = here("cancel", CELL)
    assert code == 0 and "cancelled 2 jobs" in out and len(calls(fake, "scancel")) == 1
    assert {name: state["state"] for name, state in here.status().items()} == {CELL: "cancelled", SIBLING: "pending"}
    fake_slurm.write(fake, {k: v for k, v in fake_slurm.read(fake).items() if v["state"] == "PENDING"})
    assert here.status()[CELL]["state"] == "cancelled"  # SLURM forgets members that never ran
    assert "nothing is pending" in here("cancel", CELL)[1]
    code, _, err = here("cancel", "edm/table3")
    assert code == 2 and "nothing of 'edm/table3' was submitted" in err


def test_status_asks_slurm_once_whatever_the_number_of_jobs(here: Here, fake: Path) -> None:
    here.submit()
    for job in fake_slurm.read(fake):
        fake_slurm.change(fake, job, state="FAILED")
    (fake / "calls").unlink()
    here.status()
    assert len(calls(fake, "squeue")) == 1 and len(calls(fake, "sacct")) == 1


def test_without_accounting_the_controller_says_how_a_job_ended(here: Here, fake: Path) -> None:
    here.submit()
    (fake / "no-accounting").touch()
    for job in fake_slurm.read(fake):
        fake_slurm.change(fake, job, state="NODE_FAIL")
    assert "NODE_FAIL" in here.status()[CELL]["reason"]


def test_a_runs_folder_that_the_nodes_do_not_see(here: Here, fake: Path) -> None:
    here.submit()
    for job in fake_slurm.read(fake):
        fake_slurm.change(fake, job, state="FAILED", code="0:53")
    assert f"wrote no log: do the nodes see {here.runs}?" in here.status()[CELL]["reason"]
    here.set(shared=["/nowhere"])
    code, _, err = here.submit("--retry")
    assert code == 2 and "is in none of Cluster.shared (/nowhere)" in err


def test_slurms_own_words_and_nothing_recorded(here: Here, fake: Path) -> None:
    (fake / "refuse").write_text("sbatch: error: invalid partition specified: gpus\nsbatch: error: Batch job failed")
    here.set(partition="gpus")
    code, _, err = here.submit()
    assert code == 2 and "SLURM refuses: invalid partition specified: gpus" in err and "nothing was submitted" in err
    assert not read_all([here.runs]) and "nothing was submitted" in here("status")[1]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"nodes": 5}, "Cluster.nodes asks for 5 nodes, and partition main has 4"),
        ({"cpus": 8}, "Cluster.cpus asks for 8 cores a node, and partition main has 4"),
        ({"mem_gb": 8.0}, "Cluster.mem_gb asks for 8192 MB a node, and partition main has 4096"),
        ({"gpus_per_node": 4}, "Cluster.gpus_per_node asks for 4 GPUs a node, and partition main has 2"),
        ({"timeout": 2000}, "Cluster.timeout asks for 2000 minutes, and partition main has 1440"),
    ],
)
def test_a_profile_that_asks_more_than_the_partition_has(here: Here, settings: dict[str, Any], words: str) -> None:
    here.set(partition="main", **settings)
    code, _, err = here.submit()
    assert code == 2 and words in err and not read_all([here.runs])


def test_arrays_are_cut_at_max_array_size(here: Here, fake: Path) -> None:
    (fake / "max-array").write_text("2")
    code, out, _ = here.submit("--seeds", "2")
    assert code == 0 and "100 (train0), 101 (evaluate0), 102 (train1), 103 (evaluate1)" in out
    scripts = [(fake / f"script-{number}.sh").read_text() for number in (100, 102)]
    assert all("#SBATCH --array=0-1%2" in script for script in scripts)


def test_evaluations_are_dealt_to_several_jobs(here: Here, fake: Path) -> None:
    here.set(partition="main", evaluation_jobs=2)
    code, out, _ = here.submit("--gin", "Scale.ranges = 1")
    assert code == 0 and "evaluate0.0" in out and "evaluate0.1" in out
    tasks = [len(m.job.tasks) for m in here.members().values() if m.stage == "evaluate"]
    assert sorted(tasks) == [1, 1, 2, 2]  # three ranges a trajectory, in two parts
    assert "aftercorr:100" in (fake / "script-102.sh").read_text()


def test_jobs_that_never_start_are_said(here: Here, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    fake_slurm.change(fake, "100_0", reason="launch failed requeued held")
    assert "scontrol release" in next(s["reason"] for s in here.status().values() if s["job"] == "100_0")


def test_two_shells_at_once(here: Here, fake: Path, tmp_path: Path) -> None:
    words = ["submit", TABLE, *OPTIONS, *GIN, "--cluster", str(here.profile), "--data", str(data_dir())]
    command = [sys.executable, "-m", "repro", *words, "--runs", str(here.runs)]
    env = {**environment(), "PATH": os.environ["PATH"]}
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(calls(fake, "sbatch")) == 2 and sum("is pending as job" in text for text in said) == 1


def test_a_submission_that_died_after_sbatch_is_healed(here: Here) -> None:
    here.submit()
    for path in here.runs.glob("submissions/*/*.job.json"):
        path.unlink()
    assert here.status()[CELL]["job"].startswith("100_")
    assert len(list(here.runs.glob("submissions/*/*.job.json"))) == 2
    assert "nothing submitted" in here.submit()[2]


def test_logs_are_the_newest_of_a_cell(here: Here, fake: Path) -> None:
    here.submit()
    code, _, err = here("logs", CELL)
    assert code == 1 and "has no log yet: it is pending" in err
    job = here.status()[CELL]["job"]
    folder = next(here.runs.glob("submissions/*/train0")) / job
    folder.mkdir(exist_ok=True)
    (folder / f"{job}_0_log.out").write_text("".join(f"line {number}\n" for number in range(100)))
    code, out, _ = here("logs", CELL, "--lines", "2")
    assert code == 0 and out.splitlines()[1:] == ["line 98", "line 99"] and str(folder) in out


def test_logs_follow_until_ctrl_c(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    job = here.status()[CELL]["job"]
    folder = next(here.runs.glob("submissions/*/train0")) / job
    folder.mkdir(exist_ok=True)
    log = folder / f"{job}_0_log.out"
    log.write_text("first\n")
    later = iter([lambda: log.write_text("first\nsecond\n"), None])

    def sleep(seconds: float) -> None:
        step = next(later)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("repro.verbs.cluster.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    code, out, _ = here("logs", CELL, "--follow")
    assert code == 130 and out.splitlines()[1:] == ["first", "second"]


def test_status_is_watched_until_all_is_over(here: Here, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            for job in fake_slurm.read(fake):
                fake_slurm.change(fake, job, state="FAILED", code="1:0")

    monkeypatch.setattr("repro.verbs.cluster.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    code, out, _ = here("status", TABLE, "--watch", "5")
    assert code == 1 and waited == [5, 5]
    assert out.count("2 pending") == 2 and out.count("2 failed") == 1


WITHOUT = (["submit", TABLE, "--scale", "ci", "--cluster", "dev"], ["status"], ["logs", CELL], ["cancel", "--all"])


def test_without_slurm(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    monkeypatch.setenv("PATH", str(tmp_path))
    for words in WITHOUT:
        code, _, err = here(*words)
        assert code == 3 and "there is no SLURM here (s" in err and "slurm/dev-cluster up" in err
    with pytest.raises(MissingPrerequisite):
        slurm.need()
    assert here.submit("--dry-run")[0] == 0  # a dry run needs none


def test_slurm_without_a_cluster(here: Here, fake: Path) -> None:
    here.submit()
    words = f"error: no DNS SRV record\n{{0}}: fatal: {slurm.NO_CLUSTER}"
    for program in fake_slurm.PROGRAMS:
        path = fake / "bin" / program
        path.write_text(f"#!/bin/sh\necho '{words.format(program)}' >&2\nexit 1\n")
    for command in WITHOUT:
        code, _, err = here(*command)
        assert code == 3 and "finds no configuration of a cluster" in err and "slurm/dev-cluster up" in err
    assert slurm.job_lives("12", 0, ""), "nobody knows better"


def test_what_is_asked_is_checked_before_slurm_is(here: Here, fake: Path) -> None:
    wrong = {
        ("status", "edm/tabel2"): "no paper, table, row or cell 'edm/tabel2'; did you mean 'edm/table2'?",
        ("status", TABLE): "nothing of 'edm/table2' was submitted",
        ("logs", CELL): f"nothing of '{CELL}' was submitted",
        ("cancel",): "name a table or cell",
        ("cancel", "edm/table3"): "nothing of 'edm/table3' was submitted",
        ("status", "--watch", "-1"): "--watch: must be above 0 and finite, not -1",
        ("status", "--watch", "nan"): "--watch: must be above 0 and finite, not nan",
        ("status", "--watch", "soon"): "'soon' is no number of seconds",
        ("logs", CELL, "--lines", "0"): "--lines: must be 1 or more, not 0",
        ("logs", CELL, "--rank", "-2"): "--rank: must be 0 or more, not -2",
        ("logs", CELL, "--seed", "one"): "'one' is no whole number",
    }
    for words, message in wrong.items():
        code, _, err = here(*words)
        assert code == 2 and message in err, err
    assert here("status")[:2] == (0, "nothing was submitted to this folder of runs\n")
    assert not (fake / "calls").exists(), "SLURM was not asked"


def test_a_submission_that_is_not_whole_hides_no_other(here: Here, fake: Path) -> None:
    here.submit()
    broken = here.runs / "submissions" / "20200101-000000-000000-abcd" / "submission.json"
    broken.parent.mkdir()
    broken.write_text('{"arrays": ')
    for words, told in ((["status"], "2 pending"), (["cancel", "--all"], "cancelled 4 jobs")):
        code, out, err = here(*words)
        assert code == 0 and f"not shown: {broken}: not a whole submission" in err and told in out
    code, _, err = here.submit("--retry")
    assert code == 2 and str(broken) in err, "what it holds could be submitted twice"


def test_folders_that_no_node_sees(here: Here, tmp_path: Path, fake: Path) -> None:
    here.set(partition="main", shared=[str(tmp_path / "elsewhere")])
    for more in ((), ("--dry-run",)):
        code, out, err = here.submit(*more)
        assert (code, out) == (2, "") and "is in none of Cluster.shared" in err
    here.runs.rmdir()
    here.runs.write_text("")
    for words in (["plan", TABLE], ["status"], ["collect", TABLE], ["run", CELL]):
        code, _, err = here(*words)
        assert code == 2 and f"--runs {here.runs}: this is a file, not a folder of runs" in err


def test_profiles_are_as_strict_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "mine.gin"
    path.write_text("\nCluster.partitoin = 'gpu'")
    with pytest.raises(UsageError, match=r"mine.gin:2: Cluster has no parameter 'partitoin'; did you mean 'partition'"):
        load_cluster(str(path))
    path.write_text("Cluster.nodes = 'two'")
    with pytest.raises(UsageError, match="mine.gin:1: Cluster.nodes: expected an integer"):
        load_cluster(str(path))
    path.write_text("\n\nCluster.price = -1.8")
    with pytest.raises(UsageError, match=r"mine.gin:3: Cluster.price must be 0 or more, not -1.8"):
        load_cluster(str(path))
    for line, said in (
        ("Cluster.sbatch = {'--hint': 'x'}", "has '--hint': write a long option without its dashes"),
        ("Cluster.sbatch = {'array': '0-3'}", "has 'array', which repro sets itself"),
        ("Cluster.environment = {'B C': 'x'}", "has 'B C', which is no name of a variable"),
        ("Cluster.environment = ['A=B']", "expected a dictionary"),
        ("Cluster.flops = 1e999", "Cluster.flops must be finite"),
        ("Cluster.partition = ''", "Cluster.partition is empty"),
        ("Cluster.gpus_per_node = 8\nCluster.tasks_per_node = 3", "Cluster.tasks_per_node is 3 beside 8 GPUs a node"),
    ):
        path.write_text(line)
        with pytest.raises(UsageError, match=re.escape(said)):
            load_cluster(str(path))
    path.write_text("Cluster.requeue = 'sometimes'")
    with pytest.raises(UsageError, match="expected one of 'always', 'interrupted', 'never'"):
        load_cluster(str(path))
    path.write_text("Cluster.timeout = 1\nCluster.signal_delay = 60")
    with pytest.raises(UsageError, match="leaves nothing"):
        load_cluster(str(path))
    with pytest.raises(UsageError, match="no cluster profile 'dve'; did you mean 'dev'"):
        load_cluster("dve")
    assert load_cluster("example-gpu").gpus(2) == 16


def test_variables_that_would_overrule_a_script_are_removed_and_named(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("RANK", "3")
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # left by a process group of another test
        monkeypatch.delenv(name, raising=False)
    _, _, err = here.submit()
    assert "not passed on to the jobs: RANK, SBATCH_PARTITION" in err

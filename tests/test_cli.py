"""The command line: bad input gives one line that names what is wrong, where, and the nearest right word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CELL, TINY, compute, data_dir, environment

from repro import assets
from repro.cli import main

GIN = [word for binding in TINY for word in ("--gin", binding)]


def fails(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 2) -> str:
    """Run a command line that must fail with one line on stderr; returns it."""
    assert main(words) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("repro: ") and "Traceback" not in err, err
    assert not out
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduec"], "unknown verb 'reproduec'; did you mean 'reproduce'?"),
        (["xyzzy"], "unknown verb 'xyzzy'; there are list, show, diff, run, reproduce, collect, plot"),
        (["it's"], 'unknown verb "it\'s"'),
        ([], "VERB"),
        (["run"], "CELL"),
        (["list", "edm/tabel2"], "no table 'edm/tabel2'; did you mean 'edm/table2'?"),
        (["reproduce", "edm/table2", "--rows", "g"], "table edm/table2 has no row 'g'"),
        (
            ["reproduce", "edm/table2", "--columns", "cifar-cond-vp"],
            "no column 'cifar-cond-vp'; did you mean 'cifar10-",
        ),
        (["run", "edm/table2/f"], "'edm/table2/f' is no cell; a cell is PAPER/TABLE/ROW/COLUMN"),
        (["run", "edm/table2/f/cifar10-cond-pv"], "no column 'cifar10-cond-pv'; did you mean 'cifar10-cond-vp'?"),
        (["run", "edm/tabel2/f/cifar10-cond-vp"], "no table 'edm/tabel2'; did you mean 'edm/table2'?"),
        (["show", CELL, "--scale", "mnii"], "no scale 'mnii'; did you mean 'mini'?"),
        (["show", CELL, "--scal", "mini", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["collect", "edm/table2", "--format", "markdwn"], "--format cannot be 'markdwn'; there are md, latex"),
        (["run", CELL, "--seeds", "many"], "--seeds"),
    ],
)
def test_unknown_words(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in fails(capsys, words)


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ("Trajektory.batch = 64", "no configurable 'Trajektory'; did you mean 'Trajectory'?"),
        ("Trajectory.bath = 64", "Trajectory has no parameter 'bath'; did you mean 'batch'?"),
        ("Trajectory.batch = %TUNED_BACH", "%TUNED_BACH is not defined; did you mean 'TUNED_BATCH'?"),
        ("Trajectory.loss = @EDMLos", "@EDMLos is not defined; did you mean 'EDMLoss'?"),
        ("VPLoss.beta_d = 20.0", "nothing uses VPLoss.beta_d"),
        ("TUNED_BACH = 64", "nothing uses the macro TUNED_BACH"),
        ("Trajectory.batch = 'many'", "Trajectory.batch: expected an integer, not 'many'"),
        ("Trajectory.batch = 6.5", "Trajectory.batch: expected an integer, not 6.5"),
        ("Trajectory.loss_reduction = 'max'", "expected one of 'sum', 'mean', 'half_sum', not 'max'"),
        ("Trajectory.lr = 1e-3", "expected a reference such as @LinearRampup"),
        ("SongUNet.attn_resolutions = 16", "expected a list, not 16"),
        ("Trajectory.batch", "Couldn't parse statement"),
        ("Trajectory.batch = [", "--gin"),
        ("Trajectory.batch = sixty", "--gin"),
        ("", "binds nothing"),
    ],
)
def test_bad_bindings(capsys: pytest.CaptureFixture[str], binding: str, said: str) -> None:
    line = fails(capsys, ["show", CELL, "--gin", binding])
    assert said in line and "--gin" in line


@pytest.fixture
def gin_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Gin tree, to be spoiled."""
    shutil.copytree(assets.gin_dir(), tmp_path / "gin")
    monkeypatch.setattr(assets, "gin_dir", lambda: tmp_path / "gin")
    return tmp_path / "gin"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("PostHocEMA.std = 0.9", "PostHocEMA.std must be above 0 and below 0.2887, not 0.9"),
        ("PostHocEMA.std = -1.0", "PostHocEMA.std must be above 0 and below 0.2887, not -1.0"),
        ("PostHocEMA.tracked = [0.3]", "PostHocEMA.tracked must be above 0 and below 0.2887, not 0.3"),
        ("PostHocEMA.snapshots = -1", "PostHocEMA.snapshots must be 0 or more, not -1"),
    ],
)
def test_a_value_that_a_class_refuses(capsys: pytest.CaptureFixture[str], gin_copy: Path, line: str, said: str) -> None:
    row = gin_copy / "edm2" / "table1" / "g.gin"
    number = len(row.read_text().splitlines()) + 1
    row.write_text(f"{row.read_text().rstrip()}\n{line}\n")
    message = fails(capsys, ["show", "edm2/table1/g/imagenet512"])
    assert f"edm2/table1/g.gin:{number}: {said}" in message


EDM2_CELL, UDIT_CELL = "edm2/table1/g/imagenet512", "udit/table10/udit-s/imagenet256-400k"


@pytest.mark.parametrize(
    ("cell", "bindings", "said"),
    [
        (CELL, ["Trajectory.batch = -4"], "--gin 'Trajectory.batch = -4': Trajectory.batch must be 1 or more, not -4"),
        (CELL, ["Trajectory.seed = 1"], "--first-seed"),
        (CELL, ["LinearRampup.lr = -1.0"], "LinearRampup.lr must be above 0, not -1"),
        (CELL, ["Adam.betas = [2, 3]"], "Adam.betas must be two numbers from 0 to below 1"),
        (CELL, ["EDMLoss.P_std = -1"], "EDMLoss.P_std must be above 0"),
        (CELL, ["edm_sampler.num_steps = 1"], "edm_sampler cannot run with its settings: at least 2 steps"),
        (CELL, ["edm_sampler.rho = 0"], "edm_sampler cannot run with its settings: float division by zero"),
        (CELL, ["edm_sampler.sigma_min = 100"], "sigma_min must be 0 or more and below sigma_max, not 100 and 80"),
        (EDM2_CELL, ["edm2_sampler.guidance = 2"], "guidance is 2 and Evaluation.guide is not set"),
        (EDM2_CELL, ["EDM2UNet.dropout = 2"], "EDM2UNet.dropout is a probability below 1, not 2"),
        (EDM2_CELL, ["EDM2UNet.model_channels = -3"], "EDM2UNet cannot be made of its arguments: "),
        (EDM2_CELL, ["Evaluation.guide = @Trajectory()"], "expected a reference such as @Guide, not @Trajectory"),
        (UDIT_CELL, ["UDiT.num_heads = 0"], "--gin 'UDiT.num_heads = 0': UDiT.num_heads must be 1 or more, not 0"),
        (UDIT_CELL, ["UDiT.down_factor = 0"], "UDiT cannot be made of its arguments: ZeroDivisionError"),
        (UDIT_CELL, ["UDiT.depth = [2, 5, 8, 5]"], "there are five stages"),
        (UDIT_CELL, ["UDiT.class_dropout = 1.5"], "class_dropout is a probability, not 1.5"),
        (UDIT_CELL, ["UDiT.skip_scaling = @HybridLoss"], "expected a reference such as @SkipScaling, not @HybridLoss"),
        (
            UDIT_CELL,
            ["GUIDANCE = 1.5", "UDiT.class_dropout = 0.0"],
            "and this one has none; its guidance can only be 1",
        ),
        (UDIT_CELL, ["ancestral_sampler.num_steps = 2000"], "2000 sampling steps cannot be taken of 1000"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_costed(
    capsys: pytest.CaptureFixture[str], cell: str, bindings: list[str], said: str
) -> None:
    assert said in fails(capsys, ["show", cell, *(word for binding in bindings for word in ("--gin", binding))])


def test_and_before_it_is_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["plan", "udit/table10", "--rows", "udit-s", "--runs", str(tmp_path)]
    said = fails(capsys, [*words, "--gin", "ancestral_sampler.num_steps = 2000"])
    assert "2000 sampling steps cannot be taken of 1000" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", UDIT_CELL], "a part of one: udit/table10 --rows udit-s --columns imagenet256-400k"),
        (["plan", "--all", "edm/table2"], "name tables, such as edm/table2, or --all and not both"),
        (["submit", "--cluster", "dev", "--dry-run"], "name tables, such as edm/table2"),
        (["acceleration", "scalelong/table1", "--out", "x"], "(see `repro acceleration --help`)"),
    ],
)
def test_advice(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    line = fails(capsys, words)
    assert said in line and ("--all" in line) == ("--all" in words)


def test_a_row_that_the_table_does_not_name(capsys: pytest.CaptureFixture[str], gin_copy: Path) -> None:
    (gin_copy / "edm" / "table2" / "g.gin").write_text("include 'edm/table2/f.gin'\n")
    message = fails(capsys, ["show", "edm/table2/g/ffhq-vp"])
    assert "gin/edm/table2/g.gin is there, but [rows.g] is not in tables/edm_table2.toml" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("include 'edm/table2/ee.gin'", "include of 'edm/table2/ee.gin', which does not exist; did you mean"),
        ("Trajectory.bath = 64", "Trajectory has no parameter 'bath'; did you mean 'batch'?"),
        ("Trajektory.batch = 64", "no configurable 'Trajektory'; did you mean 'Trajectory'?"),
        ("Trajectory.batch = %BATCHES", "%BATCHES is not defined"),
        ("VPLoss.beta_d = 20.0", "nothing uses VPLoss.beta_d"),
        ("Trajectory.batch = 'many'", "expected an integer, not 'many'"),
        ("Trajectory.batch =", "edm/table2/f.gin:"),
    ],
)
def test_a_bad_line_of_a_row_file(capsys: pytest.CaptureFixture[str], gin_copy: Path, line: str, said: str) -> None:
    row = gin_copy / "edm" / "table2" / "f.gin"
    number = len(row.read_text().splitlines()) + 1
    row.write_text(f"{row.read_text().rstrip()}\n{line}\n")
    message = fails(capsys, ["show", CELL])
    assert said in message and f"edm/table2/f.gin:{number}" in message


@pytest.mark.parametrize("flag", ["--seeds", "--jobs"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_counts_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str) -> None:
    assert flag in fails(capsys, ["run", CELL, "--scale", "ci", "--runs", str(tmp_path), flag, value])


def test_an_unwritable_runs_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = fails(capsys, ["run", CELL, "--scale", "ci", "--runs", str(tmp_path / "file" / "runs")])
    assert f"cannot create the folder {tmp_path / 'file' / 'runs'}" in line


def test_full_scale_without_data_and_weights_says_each_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders = ["--runs", str(tmp_path / "r"), "--data", str(tmp_path / "d"), "--weights", str(tmp_path / "w")]
    assert main(["run", CELL, *folders]) == 3
    first, weights, statistics, data = capsys.readouterr().err.splitlines()
    assert first == "repro: 3 things are missing:"
    assert weights.startswith(f"  - {tmp_path / 'w'}") and "`repro doctor --download` fetches" in weights
    assert statistics.startswith(f"  - {tmp_path / 'w'}") and "reference statistics" in statistics
    assert data.startswith("  - cifar10") and str(tmp_path / "d") in data
    assert main(["run", "edm/table2/a/cifar10-uncond-vp", *folders]) == 3
    assert "--train trains the network instead" in capsys.readouterr().err.splitlines()[-1]


def test_a_failed_job_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A value that no network can be built with is met in a worker."""
    words = ["run", CELL, "--scale", "ci", *GIN, "--runs", str(tmp_path), "--data", str(data_dir())]
    code = main([*words, "--gin", "AugmentPipe.p = 'often'"])
    assert code == 2 and "AugmentPipe.p: expected a number" in capsys.readouterr().err
    code = main([*words, "--gin", "SongUNet.encoder_type = 'upside down'"])
    err = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in err and "upside down" in err.splitlines()[-1]


def test_debug_shows_the_traceback_and_keeps_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "show", CELL, "--scale", "mnii"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("repro: no scale 'mnii'")


def test_what_nobody_expected_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repro.verbs import listing

    def broken(options: object) -> int:
        raise ValueError("first\nsecond")

    monkeypatch.setattr(listing, "run", broken)
    assert fails(capsys, ["list"], 1) == "repro: ValueError: first second (--debug shows where)"


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert len([c for c in cells if c["table"] == "edm/table2"]) == 48
    cell = next(c for c in cells if c["cell"] == CELL)
    assert {"cell", "table", "row", "column", "gin", "reference"} <= cell.keys()
    assert cell["gin"] == ["edm/columns/cifar10-cond-vp.gin", "edm/table2/f.gin"]
    assert (cell["row"], cell["column"]) == ("f", "cifar10-cond-vp")
    assert cell["reference"]["FID"] == 1.79 and cell["reference"]["NFE"] == 35


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", CELL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 55_735_299 and facts["nfe"] == 35 and facts["milestone_kimg"] == 200_000
    assert len(facts["trajectory_hash"]) == len(facts["evaluation_hash"]) == 64
    assert facts["config"]["class"] == "Experiment"
    assert facts["set"]["trajectory.augment"].startswith("edm/table2/f.gin:")


def test_show_at_mini_is_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", CELL, "--scale", "mini", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] < 1_000_000 and 20 < facts["milestone_kimg"] < 1000


def test_diff_names_what_a_row_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "edm/table2/e/cifar10-cond-vp", CELL, "--json"]) == 0
    changes = {change["path"]: change for change in json.loads(capsys.readouterr().out)}
    assert "trajectory.data.xflip" in changes and "trajectory.augment" in changes
    assert "trajectory.batch" not in changes


def test_run_prints_its_cell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    compute(tmp_path)
    words = ["run", CELL, "--scale", "ci", *GIN, "--runs", str(tmp_path), "--data", str(data_dir())]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{CELL}  digits FD") and err == "nothing to compute: the record is there\n"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [["list"], ["--help"], ["--version"], ["list", "--json"], ["list", "edm/table2"]])
def test_instant_verbs_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom repro.cli import main\n"
        f"try: code = main({words!r})\nexcept SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'gin', 'rich', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy and not code, (heavy, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["list", "show", "diff", "run", "reproduce", "collect", "check"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"example: repro {verb}" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error() -> None:
    """`repro list | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "repro", "list", "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and err == b""


def build_wheel(target: Path) -> Path | None:
    """A wheel of this clone, or None where no build front end works (no network, no build backend)."""
    root = assets.PACKAGE.parent
    builders = [
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(target), str(root)],
        ["uv", "build", "--wheel", "-q", "-o", str(target), str(root)],
    ]
    for builder in builders:
        if shutil.which(builder[0]) and subprocess.run(builder, capture_output=True, timeout=300).returncode == 0:
            return next(target.glob("*.whl"))
    return None


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "dist")
    if wheel is None:
        pytest.skip("no wheel can be built here")
    place = tmp_path / "site"
    shutil.unpack_archive(wheel, place, "zip")
    env = {**environment(), "PYTHONPATH": str(place)}

    def output(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "repro", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import repro; print(repro.__file__)"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.strip().startswith(os.fspath(place))
    assert len(json.loads(output("list", "--json"))) >= 48
    assert json.loads(output("show", CELL, "--json"))["parameters"] == 55_735_299
    assert (place / "repro" / "_assets" / "slurm").is_dir()
    assert "[console_scripts]\nrepro = repro.cli:main" in next(place.glob("*.dist-info/entry_points.txt")).read_text()

"""U-DiT's tables beside Table 2, and DiT's own: values as printed, what makes rows differ, runs that tables share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from repro import assets
from repro.cells import Resolved, resolve
from repro.cli import main
from repro.config import flatten
from repro.launch.plan import make_plan
from repro.results.collect import collect
from repro.results.fingerprint import differences as moved
from repro.results.references import load_fingerprints
from repro.results.render import cells_of, notes
from repro.results.sizes import sizes
from repro.tables import Cell, find_cell, load_table, table_names

TABLES = [name for name in table_names() if name.startswith("udit/")]
MODEL = "trajectory.denoiser.model"
COLUMN = "imagenet256-400k"
METRICS = ("FID", "sFID", "IS", "precision", "recall")
T = f"table1/token-downsampling/{COLUMN}"
TINY = f"udit/table9/re-param/{COLUMN}"
SAME = [
    *([f"{table}/dit-{size}/{COLUMN}" for table in ("table2", "dit_table4")] for size in ("s-2", "b-2", "l-4", "l-2")),
    [f"{table}/dit-xl-2/{COLUMN}" for table in ("table2", "table3", "table11", "dit_table4")],
    [f"{table}/dit-s-4/{COLUMN}" for table in ("table1", "dit_table4")],
    [f"{table}/udit-s/{COLUMN}" for table in ("table2", "table10")],
    [*(f"{table}/udit-b/{COLUMN}" for table in ("table2", "table3", "table10")), "table5/udit-b-400k/imagenet256"],
    [
        *(f"{table}/udit-l/{COLUMN}" for table in ("table2", "table3", "table10", "table11")),
        "table5/udit-l-400k/imagenet256",
    ],
    [f"{table}/udit-b-vanilla/{COLUMN}" for table in ("table10", "table11")],
    [f"{table}/udit-l-vanilla/{COLUMN}" for table in ("table10", "table11")],
    [f"{table}/dit-unet/{COLUMN}" for table in ("table1", "table9")],
    [T, f"table7/depthwise-shortcut/{COLUMN}", f"table9/udit-t/{COLUMN}"],
]
"""Cells that are one experiment, printed in several tables."""
RUNGS = [
    ("table1/dit-unet", "table9/dit-unet-slim", {"head_channels": 18}),
    ("table1/dit-unet", "table7/pixel-shuffle", {"down_factor": 2}),
    ("table7/pixel-shuffle", "table7/depthwise", {"down_kernel": 5}),
    ("table7/depthwise", "table7/depthwise-shortcut", {"down_shortcut": True}),
    ("table1/dit-unet", "table1/token-downsampling", {"down_factor": 2, "down_kernel": 5, "down_shortcut": True}),
    ("table9/udit-t", "table9/cos-sim", {"cosine_attention": True}),
    ("table9/cos-sim", "table9/rope2d", {"rope": True}),
    ("table9/rope2d", "table9/dwconv-ffn", {"ffn": "depthwise"}),
    ("table9/dwconv-ffn", "table9/re-param", {"ffn": "reparameterised"}),
    *(
        (f"table10/udit-{size}-vanilla", f"table10/udit-{size}",
         {"cosine_attention": True, "rope": True, "ffn": "reparameterised"})
        for size in "sbl"
    ),
]  # fmt: skip
"""(row, row that adds to it, what it adds to the network)."""
COUNTED: dict[str, tuple[int | None, float | None]] = {
    "table1/dit-s-4": (32_920_448, 1.413792),
    "table1/dit-unet": (None, 1.3966),
    "table1/token-downsampling": (5_282_408, 0.905426),
    "table7/pixel-shuffle": (None, 0.8945),
    "table7/depthwise": (5_282_408, 0.905426),
    "table9/dit-unet-slim": (None, 0.9154),
    "table9/cos-sim": (None, None),
    "table9/rope2d": (None, None),
    "table9/dwconv-ffn": (5_432_192, 0.9498),
    "table9/re-param": (5_432_192, 0.950106),
    "table10/udit-s-vanilla": (51_465_992, 5.913200),
    "table10/udit-b-vanilla": (203_266_568, 21.964100),
    "table10/udit-l-vanilla": (807_871_496, 84.478900),
    "table6/udit-b": (204_425_064, 106.710375),
    "table6/dit-xl-2": (None, None),
    "dit_table4/dit-s-8": (33_142_016, 0.358284),
    "dit_table4/dit-b-8": (130_869_248, 1.418154),
    "dit_table4/dit-b-4": (130_426_496, 5.567603),
    "dit_table4/dit-l-8": (458_578_432, 5.013005),
    "dit_table4/dit-xl-8": (675_664_640, 7.394503),
    "dit_table4/dit-xl-4": (675_000_704, 29.052011),
}
"""Row -> parameters of the form that is sampled from and GMACs with norms and softmax, where they are known."""


def cell_of(row: str) -> Cell:
    """The cell of a row that stands in one column, such as 'table9/cos-sim', or of a whole name."""
    table, name, *column = row.split("/")
    (cell,) = [
        cell
        for cell in load_table(f"udit/{table}").cells
        if cell.row == name and cell.column in (column or [cell.column])
    ]
    return cell


def of(row: str, scale: str = "full") -> Resolved:
    return resolve(cell_of(row), scale)


def differences(first: Resolved, second: Resolved) -> dict[str, Any]:
    ours, theirs = flatten(second.experiment), flatten(first.experiment)
    return {path: ours.get(path) for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}


@pytest.mark.parametrize("name", TABLES)
def test_cells_have_all_that_the_paper_prints(name: str) -> None:
    table = load_table(name)
    for cell in table.computable:
        assert cell.inferred, f"{cell.name}: whether images or latents were trained on is not known"
        if name != "udit/dit_table4":
            assert set(METRICS) <= cell.reference.keys() and table.shown[:5] == METRICS
    assert all(set(cell.reference) <= {*table.shown, "FID", "sFID", "IS"} for cell in table.cells)
    shown = {metric for cell in table.cells for metric in cell.reference}
    assert set(table.shown) <= shown, "a column without any value"


@pytest.mark.parametrize("name", TABLES)
def test_cards_say_what_the_table_does(name: str) -> None:
    """Each row's card: the command, and the values where it does not point to another row's."""
    for cell in load_table(name).computable:
        text = (assets.gin_dir() / cell.row_file).read_text()
        assert f"# command   repro reproduce {name} --rows {cell.row}\n" in text
        title = "Table 4" if name == "udit/dit_table4" else f"Table {name.removeprefix('udit/table')},"
        assert f"\n# table     {title}" in f"\n{text}", cell.name
        printed = re.search(r"^# printed   (.*)$", text, re.MULTILINE)
        if printed is None:
            assert "whose card says more" in text, cell.name
            continue
        found = {
            metric: float(value)
            for metric, value in re.findall(r"(\w+) ([\d.]+)(?=[,;]|$)", printed[1])
            if metric in METRICS
        }
        for value, _ in re.findall(r"([\d.]+) (GFLOPs)", printed[1]):
            found["Gflops"] = float(value)
        expected = {key: value for key, value in cell.reference.items() if key in (*METRICS, "Gflops")}
        assert found == expected, cell.name


@pytest.mark.parametrize("names", SAME, ids=lambda names: names[0])
@pytest.mark.parametrize("scale", ["full", "mini", "ci"])
def test_one_experiment_has_one_identity(names: list[str], scale: str) -> None:
    resolved = [resolve(find_cell(f"udit/{name}"), scale) for name in names]
    assert len({(one.trajectory_hash, one.evaluation_hash) for one in resolved}) == 1


def test_tables_2_4_and_5_plan_one_run_a_network() -> None:
    cells = [cell for number in (2, 4, 5) for cell in load_table(f"udit/table{number}").computable]
    plan = make_plan(cells, "full", (), [0], [Path("nowhere")])
    assert len(plan.jobs) == 8 and plan.missing == 8 + 4 + 8
    milestones = {job.title.split()[0]: sorted({m for leg in job.legs() for m in leg.milestones}) for job in plan.jobs}
    thousands = [200_000, 400_000, 600_000, 800_000, 1_000_000]
    assert [len(found) for found in milestones.values()].count(5) == 2
    assert max(milestones.values(), key=len) == [256 * steps for steps in thousands]


def test_all_tables_plan_every_network_once() -> None:
    cells = [cell for name in TABLES for cell in load_table(name).computable]
    plan = make_plan(cells, "full", (), [0], [Path("nowhere")])
    alike = sum(len(names) - 1 for names in SAME)
    assert plan.missing == len(cells) - alike
    assert len(plan.jobs) == plan.missing - 4 - 8 == 29, "guidance and milestones are no runs of their own"


@pytest.mark.parametrize("first, second, changes", RUNGS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("scale", ["full", "mini"])
def test_what_a_row_adds(first: str, second: str, changes: dict[str, Any], scale: str) -> None:
    found = differences(of(first, scale), of(second, scale))
    assert found.keys() == {f"{MODEL}.{key}" for key in changes}
    if scale == "full":
        assert found == {f"{MODEL}.{key}": value for key, value in changes.items()}
        return
    one, other = (load_fingerprints(cell_of(row).table)[cell_of(row).name]["values"] for row in (first, second))
    assert moved(one, other), "a key that is not felt at mini"


def test_columns_differ_in_what_they_say() -> None:
    for row in ("dit-l-2", "dit-xl-2", "udit-b", "udit-l"):
        guided = differences(of(f"table2/{row}"), of(f"table4/{row}"))
        assert guided == {"evaluation.sampler.guidance": 1.5}
    for size in "bl":
        for name, steps in (("200k", 200), ("600k", 600), ("800k", 800), ("1m", 1000)):
            longer = differences(of(f"table2/udit-{size}"), of(f"table5/udit-{size}-{name}"))
            assert longer == {"evaluation.selection.total_nimg": 256_000 * steps}
    assert differences(of("table2/udit-b"), of("table6/udit-b")) == {
        "trajectory.data.source.image_resolution": 512,
        "trajectory.data.resolution": 64,
        f"{MODEL}.img_resolution": 64,
        "evaluation.protocol.reference": "VIRTUAL_imagenet512.npz",
    }


@pytest.mark.parametrize("row", COUNTED)
def test_sizes_are_the_papers(row: str) -> None:
    """Within 0.1 % of what the papers' tracer counts, else the printed digits."""
    cell = cell_of(row)
    parameters, gmacs = COUNTED[row]
    found = sizes(cell)
    if parameters is not None:
        assert round(1e6 * found["Mparams"]) == parameters
    if gmacs is not None:
        assert found["Gflops"] == pytest.approx(gmacs, rel=1e-3)
    else:
        printed = cell.reference["Gflops"]
        digits = len(str(printed).partition(".")[2])
        assert round(found["Gflops"], digits) == printed or found["Gflops"] == pytest.approx(printed, rel=1e-3)


def test_the_configurations_of_table_8() -> None:
    """Its parameters and GFLOPs stand in Table 2; channels, heads and blocks are what the rows bind."""
    printed = {"s": (52.05, 6.04, 96, 4), "b": (204.43, 22.22, 192, 8), "l": (810.19, 85.00, 384, 16)}
    for size, (mparams, gflops, channels, heads) in printed.items():
        cell = cell_of(f"table2/udit-{size}")
        assert (cell.reference["Mparams"], cell.reference["Gflops"]) == (mparams, gflops)
        assert {name: round(value, 2) for name, value in sizes(cell).items()} == {"Mparams": mparams, "Gflops": gflops}
        model = resolve(cell).trajectory.args["denoiser"].args["model"].args
        assert (model["num_heads"] * model["head_channels"], model["num_heads"]) == (channels, heads)
        assert model["depth"] == [2, 5, 8, 5, 2]


def test_show_has_both_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", TINY]) == 0
    shown = capsys.readouterr().out
    assert (
        "parameters       5432192 (of the form that is sampled from" in shown and "trained          7995392 (" in shown
    )
    assert "gflops           0.95 (multiply-accumulates" in shown
    facts = {}
    for row in ("dit-s-4", "dit-unet"):
        assert main(["show", f"udit/table1/{row}/{COLUMN}", "--json"]) == 0
        facts[row] = json.loads(capsys.readouterr().out)
    assert all(found["fused_parameters"] is None for found in facts.values()), "nothing to fuse"


def test_what_cannot_be_rebuilt_is_for_reference_only() -> None:
    quoted = [
        cell.name.removeprefix("udit/") for name in TABLES for cell in load_table(name).cells if cell.reference_only
    ]
    assert sorted(name.split("/")[1] for name in quoted if not name.startswith("table2/")) == [
        "convolution", "diffit-xl-2", "dit-xl-2-7m", "key-value-downsampling", "pixart-alpha-xl-2", "u-vit-l",
        "u-vit-xl",
    ]  # fmt: skip
    for name in ("table1/dit-unet", "table9/dit-unet-slim", "table9/re-param", "table7/pixel-shuffle"):
        assert "not published" in cell_of(name).inferred
        assert "# inferred  " in (assets.gin_dir() / cell_of(name).row_file).read_text()


def test_the_papers_speed_has_no_value_of_ours(tmp_path: Path) -> None:
    table = load_table("udit/table11")
    collection = collect(table, "mini", [tmp_path], table.cells)
    headers, body = cells_of(collection)
    assert headers[-2:] == ["paper's recall", "paper's training steps/s"]
    assert [line[-1] for line in body] == ["1.71", "3.14", "1.55", "0.840"]
    assert all(len(line) == len(headers) for line in body)
    assert any(line.startswith("training steps/s: measured by the authors") for line in notes(collection))


def test_counted_sizes_stand_beside_the_papers(tmp_path: Path) -> None:
    table = load_table("udit/table1")
    collection = collect(table, "mini", [tmp_path], table.cells)
    headers, body = cells_of(collection)
    assert headers[-2:] == ["Gflops", "paper's Gflops"]
    assert [line[-2:] for line in body] == [["1.41", "1.41"], ["1.40", "1.40"], ["", "0.910"], ["0.905", "0.900"]]


@pytest.mark.parametrize(
    "cell, bindings, message",
    [
        (TINY, ["ancestral_sampler.num_steps = 1001"], "1001 sampling steps cannot be taken of 1000"),
        (TINY, ["Evaluation.sampler = @ddim_sampler", "ddim_sampler.num_steps = 600"], "no stride takes exactly 600"),
        (TINY, ["GUIDANCE = 1.5", "LABEL_DIM = 0"], "guidance 1.5 needs a class-conditional network .* unconditional"),
        (TINY, ["GUIDANCE = 1.5", "UDiT.class_dropout = 0"], "this one has none; its guidance can only be 1"),
        (TINY, ["RESOLUTION = 36"], "a latent of 36 pixels a side: it must be divisible by 8"),
        (
            f"udit/table1/dit-s-4/{COLUMN}",
            ["RESOLUTION = 30"],
            "a latent of 30 pixels a side: it must be divisible by 4",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_training(
    cell: str, bindings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gin = [word for binding in bindings for word in ("--gin", binding)]
    assert main(["run", cell, "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), *gin]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list((tmp_path / "runs").iterdir()) == []

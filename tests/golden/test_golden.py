"""Recorded inputs and outputs of the published implementations, one test a file (see harness.py for their format)."""

from __future__ import annotations

from pathlib import Path

import pytest
import runners_augment
import runners_checkpoints
import runners_data
import runners_edm2
import runners_loss
import runners_metrics
import runners_network
import runners_sampler
import runners_udit
import runners_udit_diffusion
from harness import Case, Runner, find_cases

HERE = Path(__file__).parent
COMMITTED = HERE / "cases"
RUNNERS: dict[tuple[str, str], Runner] = {
    **runners_network.RUNNERS,
    **runners_loss.RUNNERS,
    **runners_sampler.RUNNERS,
    **runners_augment.RUNNERS,
    **runners_udit.RUNNERS,
    **runners_udit_diffusion.RUNNERS,
    **runners_data.RUNNERS,
    **runners_metrics.RUNNERS,
    **runners_checkpoints.RUNNERS,
    **runners_edm2.RUNNERS,  # last: it hands on what has a name of EDM's and is not EDM2's
}


def not_reached() -> set[str]:
    lines = (HERE / "not_reached.txt").read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("golden", default=None)
    root = Path(given) if given else COMMITTED
    expected_failures = set() if given else not_reached()
    paths = find_cases(root)
    if not paths:
        raise pytest.UsageError(f"no golden cases (*.npz) under {root}")
    params = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        marks = [pytest.mark.xfail(strict=True, reason="not reached yet")] if name in expected_failures else []
        params.append(pytest.param(path, id=name, marks=marks))
    metafunc.parametrize("golden_path", params)


def test_case(golden_path: Path) -> None:
    case = Case(golden_path)
    key = (case.meta["kind"], case.meta["name"])
    assert key in RUNNERS, f"no runner for kind {key[0]!r}, name {key[1]!r}"
    RUNNERS[key](case)
    case.finish()


def test_expected_failures_exist() -> None:
    missing = {name for name in not_reached() if not (COMMITTED / name).is_file()}
    assert not missing


@pytest.mark.parametrize("kind", ["nothing compared", "one output left out", "wrong value", "wrong row"])
def test_harness_notices(kind: str) -> None:
    """A runner that compares nothing, too little or something else must fail."""
    case = Case(COMMITTED / "edm" / "schedule_vp.npz")
    sigma = case.arrays["out/sigma"]
    if kind == "one output left out":
        case.check("sigma", sigma)
    elif kind == "wrong value":
        with pytest.raises(AssertionError, match="sigma"):
            case.check("sigma", sigma + 1e-4 * abs(sigma).max())
        return
    elif kind == "wrong row":
        case.meta["compare"] = "first_axis"
        off = sigma.copy()
        off[abs(sigma).argmin()] *= 1.001
        with pytest.raises(AssertionError, match="sigma"):
            case.check("sigma", off)
        return
    with pytest.raises(AssertionError, match="compared"):
        case.finish()

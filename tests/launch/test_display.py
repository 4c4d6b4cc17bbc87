"""Progress: what a user sees, and when it will be over."""

from __future__ import annotations

import io
from typing import Any

import pytest

from repro.launch import display
from repro.launch.display import Bars, Estimate, Lines, clock, describe
from repro.launch.plan import Job, Request, Task

TRAIN = {"phase": "train", "nimg": 12_500, "total": 50_000, "loss": 0.123456, "img_per_sec": 345.6, "fraction": 0.25}


def job(name: str = "x") -> Job:
    request = Request("edm/table2/f/cifar10-cond-vp", "mini", (), 3)
    return Job(name, (request,), (Task(request, name, 1, 0),))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: time[0])
    return time


def test_phrases() -> None:
    assert describe(TRAIN) == "12.5/50.0 kimg  loss 0.1235  346 img/s"
    assert describe({"phase": "sample", "images": 3, "of": 9}) == "sampling 3/9 images"
    assert describe({"phase": "wait", "owner": "process 7 on h"}) == "waits for process 7 on h"
    assert [clock(s) for s in (5, 65, 3600, 3725)] == ["0:05", "1:05", "1:00:00", "1:02:05"]
    assert [clock(s) for s in (86399, 86400, 1449839227)] == ["23:59:59", "1 d 0:00", "16,780 d 13:07"]


def test_the_time_left_ignores_the_start_and_what_was_done_before(now: list[float]) -> None:
    estimate = Estimate(2)
    now[0] += 100  # processes start
    estimate.report(job("a"), {"fraction": 0.5, "before": 0.5})
    assert estimate.left is None
    now[0] += 10
    estimate.report(job("a"), {"fraction": 0.6, "before": 0.5})
    assert estimate.left == pytest.approx(10 * 1.4 / 0.1)
    estimate.report(job("b"), {"fraction": 0.7, "before": 0.6})
    assert estimate.left == pytest.approx(10 * 0.7 / 0.2)
    estimate.end(job("a"))
    estimate.end(job("b"))
    assert estimate.fraction == 1.0 and estimate.left == 0.0


def test_what_failed_or_was_done_elsewhere_is_no_work_of_now(now: list[float]) -> None:
    estimate = Estimate(3)
    estimate.report(job("a"), {"fraction": 0.0})
    now[0] += 10
    estimate.report(job("a"), {"fraction": 0.2})
    estimate.end(job("a"), "failed: why")
    estimate.end(job("b"))  # never reported: another process did it
    assert estimate.left == pytest.approx(10 * 1.0 / 0.2)


def test_lines_are_few_and_say_where_it_stands(now: list[float]) -> None:
    stream = io.StringIO()
    with Lines(2, stream) as lines:
        lines.begin(job())
        for _ in range(25):
            now[0] += 1
            lines.update(job(), TRAIN)
        lines.update(job(), {"note": "something"})
        lines.end(job(), "done")
    said = stream.getvalue().splitlines()
    assert len(said) == 4
    assert said[0] == "[0/2] f/cifar10-cond-vp seed 3  12.5/50.0 kimg  loss 0.1235  346 img/s  (0:10 elapsed)"
    assert said[2] == "something" and said[3].startswith("[1/2] f/cifar10-cond-vp seed 3  done  (0:25 elapsed")


def wait(owner: str) -> dict[str, Any]:
    return {"phase": "wait", "fraction": 0.0, "owner": owner}


def test_waiting_is_said_once(now: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(1, stream)
    for _ in range(5):
        lines.update(job(), wait("process 7 on h"))
    lines.update(job(), wait("process 8 on h"))
    assert len(stream.getvalue().splitlines()) == 2


def test_bars_take_every_event() -> None:
    """On a terminal; here its text goes nowhere, but every call must work."""
    bars = Bars(2)
    bars.console.file = io.StringIO()
    with bars:
        bars.begin(job("a"))
        bars.begin(job("b"))
        bars.update(job("a"), TRAIN)
        bars.update(job("b"), wait("process 7 on h"))
        bars.update(job("b"), {"note": "[red]no markup"})
        bars.end(job("a"), "done")
        bars.end(job("b"), "failed: it [did]")
    assert bars.estimate.finished == 2
    text = bars.console.file.getvalue()
    assert "[red]no markup" in text and "failed: it [did]" in text and "waits for process 7 on h" in text


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display.sys, "stderr", io.StringIO())
    assert isinstance(display.display(1), Lines)

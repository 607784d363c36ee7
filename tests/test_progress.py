"""Progress: plain lines on a pipe, one bar per stage on a terminal, nothing when quiet."""

from __future__ import annotations

import io
from typing import Any

import pytest

from raybench import progress
from raybench.progress import Reporter, Stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(distance: float | None = None, status: str = "ok", method: str = "finetune", phase: str = "search") -> Any:
    return {"status": status, "phase": phase, "method": method, "distance_validation": distance}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_stage_counts_failures_and_the_best() -> None:
    stage = Stage("search", 10, 3)
    assert stage.note == ""
    for taken in (row(0.3), row(0.1, method="gkt"), row(0.2), row(None, "failed"), row(0.0, phase="reference")):
        stage.take(taken)
    assert (stage.done, stage.ran, stage.failed) == (8, 5, 1)
    assert stage.note == "1 failed, best distance 0.1000 (gkt)"


def test_seconds_left_at_the_pace_of_this_run(clock: list[float]) -> None:
    stage = Stage("search", 10, 4)
    assert stage.left_s is None
    clock[0] += 6
    stage.take(row())
    stage.take(row())
    assert stage.left_s == 3.0 * 4


def test_plain_lines_on_a_pipe(clock: list[float]) -> None:
    stream = io.StringIO()
    with Reporter(stream).stage("search", 4, 1) as advance:
        advance(row(0.5))
        clock[0] += 11
        advance(row(None, "failed"))
        advance(row(0.25))
    assert stream.getvalue().splitlines() == [
        "search: 1/4",
        "search: 3/4, 1 failed, best distance 0.5000 (finetune), about 6 s left",
        "search: 4/4, 1 failed, best distance 0.2500 (finetune)",
    ]


def test_lines_are_few(clock: list[float]) -> None:
    stream = io.StringIO()
    with Reporter(stream).stage("search", 1000) as advance:
        for _ in range(1000):
            clock[0] += 0.1
            advance(row(0.5))
    assert 3 <= len(stream.getvalue().splitlines()) <= 12


def test_last_line_tells_the_count_where_settings_shared_rows() -> None:
    stream = io.StringIO()
    with Reporter(stream).stage("search", 4) as advance:
        advance(row(0.5))
    assert stream.getvalue().splitlines() == ["search: 0/4", "search: 1/4, best distance 0.5000 (finetune)"]


def test_a_stage_that_is_done_says_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        with Reporter(stream).stage("search", 0):
            pass
        assert stream.getvalue() == ""
    stream = io.StringIO()
    with Reporter(stream).stage("search", 3, 3):
        pass
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    with Reporter(stream).stage("search", 2) as advance:
        advance(row(None, "failed"))
        advance(row(0.25))
    shown = stream.getvalue()
    assert "\x1b[" in shown
    last = shown.split("search")[-1]
    assert "2/2" in last
    assert "1 failed, best distance 0.2500 (finetune)" in last
    assert shown.count("\n") <= 2


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    reporter = Reporter(stream, quiet=True)
    reporter.say("hello")
    with reporter.stage("search", 2) as advance:
        advance(row(0.1))
    assert stream.getvalue() == ""


def test_what_is_said_is_not_markup_and_not_wrapped() -> None:
    stream = io.StringIO()
    text = "[bold]held by[/bold] " + "x" * 300
    Reporter(stream).say(text)
    assert stream.getvalue() == text + "\n"


def test_errors_pass_through_a_stage() -> None:
    for stream in (io.StringIO(), Terminal()):
        with pytest.raises(KeyError), Reporter(stream).stage("search", 2):
            raise KeyError("x")

"""Drivers that die at any moment: the same command ends in the same rows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import raybench
from raybench.leaderboard.store import ResultStore
from tests.run.tables import ids, shared_columns


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.mark.parametrize(
    ("rows", "when"),
    [(0, "before"), (1, "after"), (3, "before"), (4, "after"), (6, "before"), (9, "after"), (10, "before")],
)
def test_death_around_any_row(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, when: str) -> None:
    """The driver dies just before, or just after, a row is durable; the same command goes on."""
    go("whole")
    append, count = ResultStore.append, 0

    def dying(self: ResultStore, batch: Any) -> None:
        nonlocal count
        if count == rows and when == "before":
            raise Killed
        append(self, batch)
        if count == rows:
            raise Killed
        count += 1

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "append", dying)
        with pytest.raises(Killed):
            go()
    kept = ids(tmp_path / "out") if rows or when == "after" else set()
    assert len(kept) == rows + (when == "after")
    outcome = go()
    assert outcome.ran == 11 - len(kept)
    pd.testing.assert_frame_equal(shared_columns(tmp_path / "out"), shared_columns(tmp_path / "whole"))


@pytest.mark.parametrize("target", ["append_searches", "compact"])
def test_death_around_a_round_and_at_the_end(
    go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    go("whole")
    method = getattr(ResultStore, target)

    def dying(self: ResultStore, *arguments: Any) -> None:
        method(self, *arguments)
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(ResultStore, target, dying)
            with pytest.raises(Killed):
                go()
    go()
    pd.testing.assert_frame_equal(shared_columns(tmp_path / "out"), shared_columns(tmp_path / "whole"))
    assert len(ResultStore(tmp_path / "out").searches()) == 6


def kill_a_driver(tmp_path: Path, results: Path, rows: int, delay_s: float) -> int:
    """Start the real command, SIGKILL it ``delay_s`` after it left ``rows`` rows; returns how many it left."""
    package = str(Path(raybench.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "raybench", "run", "spec.yaml", "--serial", "--quiet", "--results", str(results)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(results.glob("trials/*.parquet"))) < rows and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay_s)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    return len(ids(results)) if results.exists() else 0


def check_killed(go: Any, make_spec: Any, tmp_path: Path, moments: list[tuple[int, float]]) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(make_spec()))
    go("whole")
    for index, (rows, delay_s) in enumerate(moments):
        results = tmp_path / f"killed-{index}"
        kept = kill_a_driver(tmp_path, results, rows, delay_s)
        before = ids(results) if kept else set()
        outcome = go(results.name)  # the dead driver's lock is taken over at once
        assert outcome.exit_code == 0
        assert outcome.ran == 11 - kept
        assert before <= ids(results)
        pd.testing.assert_frame_equal(shared_columns(results), shared_columns(tmp_path / "whole"))
        assert len(ResultStore(results).searches()) == 6


def test_sigkill_of_the_real_command(go: Any, make_spec: Any, tmp_path: Path) -> None:
    check_killed(go, make_spec, tmp_path, [(1, 0.0), (5, 0.02)])


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments(go: Any, make_spec: Any, tmp_path: Path) -> None:
    """Before the first row, between rows, while one is written, in rounds of a search, in the finals, at the end."""
    draw = random.Random(0)
    check_killed(go, make_spec, tmp_path, [(draw.randrange(12), draw.random() * 0.3) for _ in range(20)])


@pytest.mark.slow
def test_sigkill_of_every_resume_too(go: Any, make_spec: Any, tmp_path: Path) -> None:
    """A driver, and each that takes its folder over, dies a moment after it made some progress."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(make_spec()))
    go("whole")
    draw, kept = random.Random(1), 0
    while kept < 11:
        now = kill_a_driver(tmp_path, tmp_path / "out", kept + 1, draw.random() * 0.1)
        assert now > kept
        kept = now
    go()
    pd.testing.assert_frame_equal(shared_columns(tmp_path / "out"), shared_columns(tmp_path / "whole"))

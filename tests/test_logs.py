"""Lines of a process: where they go, what they hold, and that they cost next to nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from raybench.logs import log_event, open_log


@pytest.fixture(autouse=True)
def _closed():
    yield
    open_log(None, "")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def test_a_line_holds_time_process_and_trial(tmp_path):
    open_log(str(tmp_path / "a"), "node7")
    assert not (tmp_path / "a").exists()  # until there is something to tell
    log_event("started", "t1", phase="search")
    (line,) = lines(tmp_path / "a")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "node": "node7", "pid": os.getpid(), "event": "started", "trial_id": "t1", "phase": "search",
    }  # fmt: skip
    assert (tmp_path / "a" / f"node7-{os.getpid()}.jsonl").exists()


def test_the_last_folder_counts_and_none_is_silent(tmp_path, capfd):
    for name in ("a", "b"):
        open_log(str(tmp_path / name), "n")
        log_event(name, "t")
    open_log(None, "n")
    log_event("unseen", "t", error=ValueError("x"))
    assert [[line["event"] for line in lines(tmp_path / name)] for name in ("a", "b")] == [["a"], ["b"]]
    assert capfd.readouterr() == ("", "")


def test_a_traceback_is_one_line(tmp_path):
    open_log(str(tmp_path), "n")
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError as error:
        log_event("raised", "t", error=error)
    (line,) = lines(tmp_path)
    assert line["level"] == "warning"
    assert line["traceback"].splitlines()[0].startswith("Traceback")
    assert line["traceback"].splitlines()[-1] == "ZeroDivisionError: a bug"


def test_a_folder_that_takes_no_writes_ends_no_trial(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    open_log(str(tmp_path / "file"), "n")
    log_event("started", "t")
    assert "FileExistsError" in capfd.readouterr().err


def test_a_trial_pays_less_than_a_few_milliseconds(tmp_path):
    open_log(str(tmp_path), "n")
    times = []
    for _ in range(50):
        start = time.perf_counter()
        log_event("started", "t", phase="search", method="finetune")
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 0.003

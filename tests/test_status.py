"""``raybench status`` reads a results folder only: while it runs, after a kill, at the end, without the data."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from raybench import status as module
from raybench.leaderboard.lock import NAME, DriverLock
from raybench.leaderboard.store import ResultStore


class Killed(BaseException):
    """Stands for SIGKILL inside this process."""


def told(cli: Any, *arguments: str) -> dict[str, Any]:
    said = cli("status", *arguments, "--format", "json")
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def run(cli: Any, spec: dict[str, Any]) -> Any:
    return cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=spec)


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs until so many rows are durable; the lock stays, as after a kill."""

    def arm(rows: int) -> None:
        append, count = ResultStore.append, 0

        def dying(self: ResultStore, batch: Any) -> None:
            nonlocal count
            append(self, batch)
            count += 1
            if count == rows:
                raise Killed

        monkeypatch.setattr(ResultStore, "append", dying)
        monkeypatch.setattr(DriverLock, "release", lambda self: self._stop.set())

    return arm


def test_a_run_that_was_killed_and_one_under_way(cli: Any, make_spec: Any, dies_after: Any, tmp_path: Path) -> None:
    dies_after(5)
    with pytest.raises(Killed):
        run(cli, make_spec())
    lock = tmp_path / "out" / NAME
    since = json.loads(lock.read_text())["since"]
    least = time.time() - since
    here = told(cli, "out")  # its process is this one, which lives
    most = time.time() - since
    assert (here["state"], here["driver"]["alive"], here["rows"]) == ("running", True, 5)
    assert here["driver"]["heartbeat_age_s"] < 60
    done = {"references": (3, 3, 0), "search": (6, 2, 4), "finals": (2, 0, 2), "oracles": (0, 0, 0)}
    assert {k: (s["total"], s["done"], s["to_run"]) for k, s in here["stages"].items()} == done
    assert here["last_row_age_s"] < 60
    assert 300 / most * 0.99 <= here["rows_per_minute"] <= 300 / least * 1.01
    assert here["left_s"] == pytest.approx(6 / here["rows_per_minute"] * 60)

    away = json.loads(lock.read_text()) | {"place": "another host", "host": "alpha", "pid": 7}
    lock.write_text(json.dumps(away | {"heartbeat": time.time() - 5}))
    assert told(cli, "out")["state"] == "running"
    lock.write_text(json.dumps(away | {"heartbeat": time.time() - 600}))
    gone = told(cli, "out")
    assert (gone["state"], gone["driver"]["alive"], gone["left_s"]) == ("stopped", False, None)
    said = cli("status", "out").out
    assert "out: stopped" in said
    assert "driver: process 7 on alpha" in said
    assert "gone, the same command goes on; last heartbeat 10 min ago" in said
    assert "search           6     2       0       4" in said


def test_a_leaderboard_is_there_before_the_end(cli: Any, make_spec: Any, dies_after: Any) -> None:
    dies_after(10)
    with pytest.raises(Killed):
        run(cli, make_spec())
    said = cli("leaderboard", "out", "--format", "csv")
    assert said.code == 0, said.err
    assert "original" in said.out
    assert "finetune" in said.out
    assert told(cli, "out")["stages"]["finals"]["to_run"] == 1


def test_the_heartbeat_tells_what_the_driver_does(tmp_path: Path) -> None:
    lock = DriverLock(tmp_path, beat_s=0.02)
    lock.doing = lambda: {"stage": "search", "running": 3, "waiting": 9, "slots": 4}
    (tmp_path / "trials").mkdir()
    with lock:
        time.sleep(0.1)
        report = module.status(str(tmp_path))
        assert report["doing"] == {"stage": "search", "running": 3, "waiting": 9, "slots": 4}
        assert "now: search, 3 of 4 slots busy, 9 trials waiting" in module.render_status(report, "table")
    assert module.status(str(tmp_path))["doing"] == {}


def test_a_finished_run_and_its_failed_rows(cli: Any, make_spec: Any, flaky: Any, tmp_path: Path) -> None:
    flaky("always")
    spec = make_spec(plugins=["flaky_plugin"], methods=["flaky", "finetune"])
    assert run(cli, spec).code == 1
    before = sorted(tmp_path.rglob("*"))
    report = told(cli, "out")
    assert sorted(tmp_path.rglob("*")) == before  # it writes nothing
    assert (report["state"], report["driver"], report["again"]) == ("finished", None, 0)
    assert report["stages"]["search"]["failed"] == 3
    assert len(report["failed"]) == 4
    assert all(row["method"] == "flaky" and "no luck today" in row["reason"] for row in report["failed"])
    said = cli("status", "out").out
    assert said.count("failed: digits(train_size=300)/mlp(hidden=8)/class(0)/flaky seed 0") == 4
    flaky("never")
    assert cli("retry", "--failed", "out", "--serial").code == 0
    after = told(cli, "out")
    again = ResultStore(tmp_path / "out").trials(attempts=True)["attempt"].gt(0).sum()
    assert (after["state"], after["failed"], after["again"]) == ("finished", [], again)
    assert again > 0


def test_neither_the_data_nor_a_plug_in_is_needed(
    cli: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(cli, make_spec()).code == 0
    monkeypatch.setattr("raybench.problem.load_data", lambda *_: pytest.fail("status loads data"))
    assert told(cli, "out")["state"] == "finished"
    spec = tmp_path / "out" / "spec.yaml"
    spec.write_text(spec.read_text() + "plugins: [absent_here]\n")
    report = told(cli, "out")
    assert (report["state"], report["stages"], report["rows"]) == ("stopped", None, 11)
    assert "absent_here" in report["note"]
    assert "trials to come are unknown here" in cli("status", "out").out


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"device_types": ["cpu"], "data": {"digits": {"checksum": "c"}}}'])
def test_damaged_facts_are_a_note_and_no_traceback(cli: Any, make_spec: Any, tmp_path: Path, text: str) -> None:
    assert run(cli, make_spec(methods=["retrain"], gold_seeds=1)).code == 0
    (tmp_path / "out" / "facts.json").write_text(text)
    assert "facts.json must be as raybench wrote it" in told(cli, "out")["note"]


def test_a_folder_that_is_not_there_is_one_line(cli: Any) -> None:
    said = cli("status", "nowhere")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "status must have a results folder, got nowhere" in said.err


def test_log_lines_of_a_run_are_found_by_trial_id(cli: Any, make_spec: Any, flaky: Any, tmp_path: Path) -> None:
    flaky("always")
    assert run(cli, make_spec(plugins=["flaky_plugin"], methods=["flaky"])).code == 1
    (path,) = (tmp_path / "out" / "logs").iterdir()
    assert path.name.endswith(f"-{os.getpid()}.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    failed = told(cli, "out")["failed"][0]["trial_id"]
    mine = [line for line in lines if line["trial_id"] == failed]
    assert [line["event"] for line in mine] == ["started", "raised", "finished"]
    assert "RuntimeError: no luck" in mine[1]["traceback"]
    assert mine[1]["level"] == "warning"
    assert mine[2]["status"] == "failed"
    ends = [line["trial_id"] for line in lines if line["event"] == "finished"]
    assert sorted(ends) == sorted(ResultStore(tmp_path / "out").ids())
    assert cli("run", "{spec}", "--serial", "--quiet", "--results", "out").code == 1
    assert len(path.read_text().splitlines()) == len(lines)  # nothing ran

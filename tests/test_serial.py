"""The serial executor: rows are on storage before anybody hears of them; Ray is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import raybench
from raybench.leaderboard.store import ResultStore
from raybench.run import Options, prepare
from raybench.serial import SerialExecutor


@pytest.fixture
def executor(make_spec: Any, tmp_path: Path) -> tuple[SerialExecutor, Any, ResultStore]:
    prepared = prepare(make_spec(), Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True))
    store = ResultStore.open_for_writing(prepared.results, prepared.metrics)
    return SerialExecutor(store, prepared.settings), prepared, store


def test_rows_are_durable_when_they_are_told(executor: Any) -> None:
    serial, prepared, store = executor
    told: list[str] = []

    def finished(row: Any) -> None:
        assert row["trial_id"] in ResultStore(store.folder.path).ids()
        told.append(row["trial_id"])

    requests = prepared.plan.references()
    serial.run_fixed(requests, finished)
    assert told == [request.spec.trial_id for request in requests]
    serial.close()


def test_a_board_that_waits_for_nobody_is_a_bug_that_is_said(executor: Any) -> None:
    class Stuck:
        done = False

        def next(self) -> None:
            return None

    with pytest.raises(RuntimeError, match="waits for a trial that nobody runs"):
        executor[0].run_searches(Stuck(), lambda row: None)


def test_records_of_a_round_are_kept(executor: Any) -> None:
    serial, prepared, store = executor
    search = prepared.plan.searches()[0]
    line = '{"dataset":"d","model":"m","scenario":"s","method":"finetune"}'
    record = {"search_id": search.id, "line": line, "round": 0, "index": 0, "train_seed": 0, "trial_id": "t"}
    serial.record([{**record, "hparams": "{}"}])
    assert list(store.searches()["trial_id"]) == ["t"]


PROBE = """
import sys
from raybench.cli import main
code = main(["run", "spec.yaml", "--serial", "--quiet", "--results", "out", "--store", "store"])
print("code", code, "ray" in sys.modules)
"""


def test_a_serial_run_does_not_import_ray(make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec(methods=[{"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}}], gold_seeds=1)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    env = {**os.environ, "PYTHONPATH": str(Path(raybench.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1] == "code 0 False", done
    assert done.stderr == ""

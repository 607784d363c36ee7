"""What methods cost as measured: from rows, and the shipped file against the shipped rows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from raybench import load_trials
from raybench.measured import FILE, measure_passes, measured_shares

ROWS = Path(__file__).parents[1] / "results" / "baselines_mnist"


def test_mean_over_good_finals() -> None:
    rows = [
        {"phase": "final", "status": "ok", "method": "a", "retrain_share": 0.1},
        {"phase": "final", "status": "ok", "method": "a", "retrain_share": 0.3},
        {"phase": "final", "status": "diverged", "method": "a", "retrain_share": 9.0},
        {"phase": "search", "status": "ok", "method": "a", "retrain_share": 9.0},
        {"phase": "final", "status": "skipped", "method": "b", "retrain_share": None},
    ]
    assert measure_passes(pd.DataFrame(rows), "x.yaml") == {"spec": "x.yaml", "methods": {"a": 0.2}}


@pytest.mark.skipif(not ROWS.is_dir(), reason="an installed package has no rows beside it")
def test_the_shipped_file_is_that_of_the_shipped_rows() -> None:
    assert json.loads(FILE.read_text()) == measure_passes(load_trials(str(ROWS)), "jobs/baselines_mnist.yaml")
    assert measured_shares()["sisa"] == pytest.approx(1.0, rel=0.05)  # a class request hits every shard

"""Rows as the runner would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from raybench.leaderboard.schema import MetricInfo

Row = dict[str, Any]


@pytest.fixture
def metrics() -> list[MetricInfo]:
    return [
        MetricInfo("distance", 1, "fraction", "lower"),
        MetricInfo("forget_accuracy", 2, "fraction", "match_retrained"),
        MetricInfo("retain_loss", 1, "nats", "match_retrained"),
    ]


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def make(**changes: Any) -> Row:
        row: Row = {
            "attempt": 0,
            "experiment": "e",
            "protocol": "1",
            "dataset": "mnist",
            "dataset_checksum": "c0",
            "model": "lenet5",
            "scenario": "class(0)",
            "method": "finetune",
            "method_version": 1,
            "variant": "",
            "phase": "final",
            "train_seed": 0,
            "unlearn_seed": 0,
            "hparams": "{}",
            "spec": "{}",
            "status": "ok",
            "device_type": "cpu",
        }
        row |= changes
        key = {k: row[k] for k in ("dataset", "model", "scenario", "method", "variant", "phase", "hparams")}
        row.setdefault("trial_id", json.dumps([key, row["train_seed"], row["unlearn_seed"]]))
        return row

    return make

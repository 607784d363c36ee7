"""What the tests of ``run_trial`` are made of: a small problem, its trials, a workshop, and rows as written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybench.leaderboard.schema import MetricInfo, check_row, comparable, trial_schema
from raybench.metrics import DEFAULT_METRICS
from raybench.problem import load_data
from raybench.registry import (
    METHODS,
    METRICS,
)
from raybench.spec import FINAL, PROTOCOL, Choice, ProblemSpec, TrialSpec
from raybench.task import UnlearningTask
from raybench.workshop import Settings, Workshop

DIGITS = Choice("digits", {"train_size": 200, "test_size": 60})
RECIPE = {"epochs": 3, "batch_size": 32, "augment": False}
INFOS = [MetricInfo(m.name, m.version, m.unit, m.direction) for m in (METRICS[n] for n in DEFAULT_METRICS)]
SCHEMA = trial_schema(INFOS, PROTOCOL)
COLUMNS = comparable(SCHEMA)


def problem_of(scenario: str = "class", **changes: Any) -> ProblemSpec:
    options = {"class": {"classes": [0]}, "random": {"fraction": 0.2}}[scenario]
    dataset = changes.get("dataset", DIGITS)
    values: dict[str, Any] = {
        "dataset": dataset,
        "checksum": load_data(dataset, None, False)[1],
        "model": Choice("mlp", {"hidden": [16]}),
        "scenario": Choice(scenario, options),
        "recipe": RECIPE,
        "train_seed": 0,
    }
    return ProblemSpec(**{**values, **changes})


def trial_of(method: str, phase: str = FINAL, problem: ProblemSpec | None = None, **changes: Any) -> TrialSpec:
    values: dict[str, Any] = {"hparams": {}, "unlearn_seed": 0, "method_version": METHODS[method].version}
    return TrialSpec(problem or problem_of(), method, phase=phase, **{**values, **changes})


def shop_at(folder: Path, **changes: Any) -> Workshop:
    values: dict[str, Any] = {
        "experiment": "test",
        "store": str(folder / "store"),
        "metrics": DEFAULT_METRICS,
        "artifacts": str(folder / "artifacts"),
    }
    return Workshop(Settings(**{**values, **changes}))


Method = Callable[[UnlearningTask, Any], Any]
Register = Callable[..., str]


@dataclasses.dataclass(frozen=True)
class Amount:
    amount: float = 1.0


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it would be written: the schema accepts it."""
    return check_row({key: value for key, value in row.items() if key != "series"}, SCHEMA)


def gates_of(row: dict[str, Any]) -> dict[str, bool | None]:
    gates: dict[str, bool | None] = json.loads(row["gates"])
    return gates

"""Requests for trials, and the ledger of the rows and settings that exist so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raybench.leaderboard.store import ResultStore
from raybench.rules import OBJECTIVES
from raybench.spec import TrialSpec

# Columns that the plan looks at.
NEEDED = (
    "trial_id", "attempt", "status", "reason", "phase", "dataset", "model", "scenario", "method", "variant",
    "train_seed", "unlearn_seed", "device_type", "unlearn_s", "retrain_s", "retrain_share", "wall_s", "missing",
    *(metric for metric, _ in OBJECTIVES.values()),
)  # fmt: skip

Row = Mapping[str, Any]
MEASURE = "measure"  # of a request's context: metrics to measure of a row that exists, instead of running the trial
SearchKey = tuple[str, int, int, int]  # search id, round, index, train seed


@dataclass(frozen=True)
class Request:
    """A trial to run, with the columns that only the plan knows."""

    spec: TrialSpec
    context: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"spec": self.spec.to_dict(), "context": dict(self.context)}

    def again(self) -> Request:
        """The next attempt of a trial that began and did not end. What is measured of a row keeps that row's number."""
        if MEASURE in self.context:
            return self
        return Request(self.spec, {**self.context, "attempt": int(self.context.get("attempt", 0)) + 1})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Request:
        """The inverse of ``to_dict``."""
        return cls(TrialSpec.from_dict(plain["spec"]), plain["context"])


@dataclass
class Ledger:
    """The rows and the searches table as far as they exist."""

    rows: dict[str, Row] = field(default_factory=dict)
    table: dict[SearchKey, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # -> trial id, point
    attempts: dict[str, int] = field(default_factory=dict)  # attempt number of trials that are retried

    def done(self, trial_id: str) -> bool:
        """Whether the trial has a row."""
        return trial_id in self.rows

    def ok(self, trial_id: str) -> bool:
        """Whether the trial has a row with results."""
        return trial_id in self.rows and self.rows[trial_id]["status"] == "ok"

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """The requests without a row, each trial once."""
        unique = {request.spec.trial_id: request for request in requests}
        return [self._numbered(request) for trial_id, request in unique.items() if not self.done(trial_id)]

    def _numbered(self, request: Request) -> Request:
        attempt = self.attempts.get(request.spec.trial_id)
        return request if attempt is None else Request(request.spec, {**request.context, "attempt": attempt})


def read_ledger(store: ResultStore) -> Ledger:
    """The ledger of a results folder."""
    ledger = Ledger()
    trials = store.trials()
    columns = [name for name in NEEDED if name in trials.columns]
    for record in trials[columns].to_dict("records"):
        row = {str(k): None if v is None or v != v else v for k, v in record.items()}
        ledger.rows[str(row["trial_id"])] = row
    for record in store.searches().to_dict("records"):
        key = (record["search_id"], int(record["round"]), int(record["index"]), int(record["train_seed"]))
        ledger.table[key] = (record["trial_id"], json.loads(record["hparams"]))  # YAML would read 1e-05 as text
    return ledger

"""The aggregator: one actor through which every row of a run becomes durable.

It writes first and answers then, so a row that was acknowledged survives any kill. It keeps nothing that it cannot
read back from the results folder, so Ray may restart it at any moment and repeat the calls it had not answered:
the store drops the repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.errors import UserError
from raybench.leaderboard.schema import MetricInfo
from raybench.leaderboard.store import ResultStore
from raybench.ledger import MEASURE, Request, Row

NAME = "aggregator"


class Aggregator:
    """A ``ResultStore`` behind an actor."""

    def __init__(self, results: str, metrics: Sequence[MetricInfo]) -> None:
        self._store = ResultStore.open_for_writing(results, metrics)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Returns when the rows are durable."""
        self._store.append(rows)

    def find(self, trial_id: str, attempt: int) -> Row | None:
        """The row of one attempt, if it is there."""
        rows = self._store.trials(attempts=True)
        mine = rows[(rows["trial_id"] == trial_id) & (rows["attempt"] == attempt)].to_dict("records")
        return {str(k): None if pd.isna(v) else v for k, v in mine[0].items()} if mine else None

    def append_searches(self, records: Sequence[dict[str, Any]]) -> None:
        """Returns when the records are durable."""
        self._store.append_searches(records)

    def append_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Returns when the records are durable."""
        self._store.append_metrics(records)


def start_aggregator(results: str, metrics: Sequence[MetricInfo], namespace: str, node_id: str) -> Any:
    """Handle of the run's aggregator, on node ``node_id`` (the driver's) while that lives. Not detached: it ends
    with the driver. Zero CPUs, so that it takes no slot and runs on a head that has none."""
    actor = ray.remote(Aggregator).options(
        name=NAME,
        namespace=namespace,
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=True),
    )
    return actor.remote(results, list(metrics))


def find_row(aggregator: Any, request: Request) -> Row | None:
    """The row that a worker left before it died: the watchdog's, or one whose answer got lost on the way."""
    if MEASURE in request.context:
        return None
    found: Row | None = wait_for(aggregator.find.remote(request.spec.trial_id, int(request.context.get("attempt", 0))))
    return found


def wait_for(reference: Any) -> Any:
    """Wait for an answer. An error that people can mend (disk full, folder gone) is raised as itself."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:  # restarts are unlimited: only its start can have failed
        raise UserError(f"rows must be kept, the actor that keeps them ended ({last_line(error)})") from error


def last_line(error: Exception) -> str:
    """What a Ray error comes down to; its text quotes a remote traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()

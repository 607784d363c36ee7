"""``--serial``: the same plan, rounds, trials and store in this process, without importing Ray. Also defines what
an executor is: the cluster has the other one (``raybench.cluster.scheduler``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raybench.board import Board
from raybench.device_memory import limit_memory
from raybench.leaderboard.store import ResultStore
from raybench.ledger import MEASURE, Request, Row
from raybench.measuring import measure_trial, receipt
from raybench.rounds import Ask, ask_optuna
from raybench.shared_training import train_here
from raybench.trial import run_trial
from raybench.workshop import Placement, Settings, Workshop

Finished = Callable[[Row], None]


@dataclass(frozen=True)
class Load:
    """How busy an executor is: trials under way, those that could run now and wait, and places for trials."""

    running: int
    waiting: int
    slots: int


IDLE = Load(0, 0, 0)


class Executor(Protocol):
    """Runs requests and makes their rows durable. ``finished(row)`` is called in the driver, in its main thread, after
    the row is on storage. An executor never runs two requests of one trial id."""

    ask: Ask

    def record(self, records: list[dict[str, Any]]) -> None:
        """Make records of the searches table durable."""

    def run_fixed(self, requests: Sequence[Request], finished: Finished) -> None:
        """Run requests in any order (references, finals, oracles, measurements of rows that exist)."""

    def run_searches(self, board: Board, finished: Finished) -> None:
        """Run what ``board.next()`` hands out until ``board.done``; tell ``board.finished`` every row."""

    def load(self) -> Load:
        """How busy it is now; may be asked from another thread."""

    def close(self) -> None:
        """Release what was started."""


class SerialExecutor:
    """One trial after the other, here. ``share``: of the GPU, as the spec says it. Below 1 other processes may be on
    the device too, so this one keeps to its share of the memory and its rows do not say ``exclusive``."""

    def __init__(self, store: ResultStore, settings: Settings, share: float = 1.0) -> None:
        self._store = store
        if share < 1:
            limit_memory(share)
        placement = Placement(exclusive=share >= 1)
        self._shop = Workshop(settings, placement=placement, train_shared=lambda order: train_here(settings, order))
        self._shop.end_process = self._end
        self.ask: Ask = ask_optuna
        self._load = Load(0, 0, 1)

    def record(self, records: list[dict[str, Any]]) -> None:
        """See ``Executor``."""
        self._store.append_searches(records)

    def run_fixed(self, requests: Sequence[Request], finished: Finished) -> None:
        """See ``Executor``."""
        for index, request in enumerate(requests):
            self._load = Load(1, len(requests) - index - 1, 1)
            finished(self._run(request))
        self._load = Load(0, 0, 1)

    def run_searches(self, board: Board, finished: Finished) -> None:
        """See ``Executor``."""
        while not board.done:
            request = board.next()
            if request is None:
                raise RuntimeError("the search board waits for a trial that nobody runs")
            self._load = Load(1, board.waiting, 1)
            row = self._run(request)
            board.finished(row)
            finished(row)
        self._load = Load(0, 0, 1)

    def load(self) -> Load:
        """See ``Executor``."""
        return self._load

    def close(self) -> None:
        """Nothing was started."""

    def _end(self, row: dict[str, Any]) -> None:
        """For the watchdog: this process is all that there is, so the run ends with it. The row is kept, so the same
        command goes on behind it."""
        try:
            self._store.append([row])
            print(
                f"raybench: trial {row['trial_id']} ({row['method']}) {row['reason']}; its row is kept, run the same "
                "command again to go on",
                file=sys.stderr,
                flush=True,
            )
        finally:
            os._exit(1)

    def _run(self, request: Request) -> Row:
        if MEASURE in request.context:
            self._store.append_metrics(measure_trial(request.spec, request.context, self._shop))
            return receipt(request.spec)
        row = run_trial(request.spec, request.context, self._shop)
        self._store.append([row])
        row.pop("series", None)
        return row

"""All searches of an experiment in one Ray Tune run.

Which settings are tried is decided round by round (``raybench.rounds``, asked through OptunaSearch). Tune runs
them: it schedules trials over the cluster, reuses warm actors and retries what a dead worker had in hand.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raybench.board import Board
from raybench.cluster.pool import TRIES
from raybench.cluster.trial_actor import Kit, Outcome, TrialRunner
from raybench.errors import UserError
from raybench.ledger import Request, Row

Finished = Callable[[Row], None]
Fail = Callable[[Request, str], Row]


class SearchTrial(tune.Trainable):
    """One Tune trial: one request, run in this process. Reused from trial to trial, so the runner stays warm."""

    def setup(self, config: Mapping[str, Any], kit: Kit) -> None:
        self._runner = TrialRunner(kit)
        self._request = config["request"]

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self._request = new_config["request"]
        return True

    def step(self) -> dict[str, Any]:
        try:
            outcome: Outcome | Exception = self._runner.run(self._request)
        except UserError as error:  # Tune would kill the warm actor and try again: the driver raises it instead
            outcome = error
        except Exception:  # a bug of ours, not of the method: likewise, with where it happened
            outcome = RuntimeError(traceback.format_exc())
        return {"outcome": outcome, "done": True}


class BoardSearcher(Searcher):
    """Hands Tune what the board has, from whichever search is least advanced, and tells the board what came.

    Repeats are counted here and not by Tune, which gives a trial up at once when its reused worker dies between
    two trials.
    """

    def __init__(self, board: Board, finished: Finished, fail: Fail) -> None:
        super().__init__(metric="done", mode="max")  # Tune insists on one; the objectives are the board's affair
        self.error: BaseException | None = None
        self._board = board
        self._finished = finished
        self._fail = fail
        self._running: dict[str, tuple[Request, int]] = {}  # Tune's trial id -> request, its try
        self._again: list[tuple[Request, int]] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next request; None while all wait; FINISHED at the end or after an error."""
        if self.error is not None or (self._board.done and not self._again):
            return str(Searcher.FINISHED)
        if self._again:
            job = self._again.pop(0)
        else:
            request = self._board.next()
            if request is None:
                if not self._running:
                    self.error = RuntimeError("the search board waits for a trial that nobody runs")
                return None
            job = (request, 1)
        self._running[trial_id] = job
        return {"request": job[0].to_dict()}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The row of a trial; another try, or the failed row, of one whose worker died or handed it back."""
        request, tries = self._running.pop(trial_id)
        try:
            self._take(request, tries, None if error or not result else result["outcome"])
        except BaseException as problem:  # Tune must end its actors first; ``run_board`` raises it then
            self.error = problem

    def _take(self, request: Request, tries: int, outcome: Outcome | Exception | None) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        row: Row | None = outcome.row if outcome is not None else None
        if row is None:
            if tries < TRIES:
                self._again.append((request, tries + 1))
                return
            reason = outcome.handed_back if outcome is not None else f"worker died in {tries} of {tries} tries"
            row = self._fail(request, reason)
        self._board.finished(row)
        self._finished(row)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Trials report once, when they are complete."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for ``Tuner.restore``, which nobody calls: a search is rebuilt from rows."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see ``__getstate__``."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


def run_board(
    board: Board, kit: Kit, resources: Mapping[str, float], slots: int, finished: Finished, fail: Fail
) -> None:
    """Run the board to its end. ``resources`` of one trial; ``slots`` trials at once."""
    searcher = BoardSearcher(board, finished, fail)
    scratch = tempfile.mkdtemp(prefix="raybench-tune-")
    try:
        with _silent():
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(SearchTrial, kit=kit), dict(resources)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,
                    max_concurrent_trials=slots,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(
                    name="searches",
                    storage_path=scratch,
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.error is not None:
        raise searcher.error


@contextmanager
def _silent() -> Iterator[None]:
    """Tune logs every retried trial as an error; here those are rows or nothing."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)

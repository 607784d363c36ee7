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
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raybench.board import Board
from raybench.cluster.packing import Packing
from raybench.cluster.session import with_gpu
from raybench.cluster.trial_actor import Kit, Outcome, TrialRunner
from raybench.cluster.tries import Job
from raybench.errors import UserError
from raybench.ledger import Request, Row
from raybench.serial import Load

Finished = Callable[[Row], None]
Fail = Callable[[Request, str], Row]
Find = Callable[[Request], Row | None]  # the row that a worker left before it died


class SearchTrial(tune.Trainable):
    """One Tune trial is a lane: it runs a request per step, in this process, for as long as there are any.

    A Tune trial per request would have Tune throw away workers that are still starting, whenever one that is there
    falls free first: with trials shorter than a worker's start most slots would stay empty for good.
    """

    def setup(self, config: Mapping[str, Any], kit: Kit) -> None:
        self._runner = TrialRunner(kit.with_share(config["gpu"]) if "gpu" in config else kit)
        self._request = config["request"]

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self._request = new_config["request"]
        return True

    def feed(self, request: Mapping[str, Any]) -> None:
        """The next request."""
        self._request = request

    def step(self) -> dict[str, Any]:
        try:
            outcome: Outcome | Exception = self._runner.run(self._request)
        except UserError as error:  # Tune would kill the warm actor and try again: the driver raises it instead
            outcome = error
        except Exception:  # a bug of ours, not of the method: likewise, with where it happened
            outcome = RuntimeError(traceback.format_exc())
        return {"outcome": outcome}


class BoardSearcher(Searcher):
    """Hands Tune's lanes what the board has, from whichever search is least advanced, and tells the board what came.

    Repeats are counted here and not by Tune, which gives a trial up at once when its reused worker dies between
    two trials. ``alone``: requests that ran out of memory and have no row yet; the search ends when all else waits
    for them. ``died``: what Tune's scheduler heard of workers that died, by Tune's trial id. With ``packing`` trials
    take different shares of a GPU, and a lane keeps one.
    """

    def __init__(
        self, board: Board, finished: Finished, fail: Fail, find: Find, packing: Packing | None = None
    ) -> None:
        super().__init__(metric="training_iteration", mode="max")  # Tune insists; the objectives are the board's
        self.error: BaseException | None = None
        self._board = board
        self._finished = finished
        self._fail = fail
        self._find = find
        self.packing = packing
        self.alone: list[Request] = []
        self.died: dict[str, Exception | str | None] = {}
        self._running: dict[str, Job] = {}  # by Tune's trial id
        self._again: list[Job] = []

    def load(self, slots: int) -> Load:
        """See ``Executor``."""
        return Load(len(self._running), self._board.waiting + len(self._again), slots)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A first request for a lane; None while all wait; FINISHED at the end or after an error."""
        if self.error is not None or (self._board.done and not self._again):
            return str(Searcher.FINISHED)
        request = self._hand_out(trial_id)
        if request is not None:
            return {"request": request, **({} if self.packing is None else {"gpu": self.packing.share(trial_id)})}
        if not self._running and self.alone:
            return str(Searcher.FINISHED)
        if not self._running:
            self.error = self.error or RuntimeError("the search board waits for a trial that nobody runs")
        return None

    def took(self, trial_id: str, outcome: Outcome | Exception) -> dict[str, Any] | None:
        """A lane's request has ended; returns its next one, or None where the lane should end."""
        self._close(trial_id, outcome)
        if self.error is not None or (isinstance(outcome, Outcome) and outcome.row is None and not outcome.memory):
            return None  # what this worker handed back, another one may have the device for
        return self._hand_out(trial_id, lane=True)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """A lane has ended. One that died has left its request: another try, or the failed row."""
        if trial_id in self._running:
            self._close(trial_id, None)
        if self.packing is not None:
            self.packing.close(trial_id)

    def _hand_out(self, trial_id: str, lane: bool = False) -> dict[str, Any] | None:
        """What a new lane, or one that is there, runs next."""
        job = self._next() if self.packing is None else self._fitting(self.packing, trial_id, lane)
        if job is None:
            return None
        self._running[trial_id] = job
        return job.request.to_dict()

    def _next(self) -> Job | None:
        if self._again:
            return self._again.pop(0)
        request = self._board.next()
        return None if request is None else Job(request)

    def _fitting(self, packing: Packing, trial_id: str, lane: bool) -> Job | None:
        try:
            request = packing.choose(trial_id, lane, [*(job.request for job in self._again), *self._board.ready()])
        except BaseException as problem:  # the store cannot be read: as in ``_close``
            self.error = problem
            return None
        if request is None:
            return None
        for job in self._again:
            if job.request is request:
                self._again.remove(job)
                return job
        self._board.take(request)
        return Job(request)

    def _close(self, trial_id: str, outcome: Outcome | Exception | None) -> None:
        job = self._running.pop(trial_id)
        try:
            if self.packing is not None:
                self.packing.ended(trial_id, job.request, memory=isinstance(outcome, Outcome) and outcome.memory)
            row = self._row(job, trial_id, outcome)
            if row is not None:
                self._board.finished(row)
                self._finished(row)
        except BaseException as problem:  # Tune must end its actors first; ``run_board`` raises it then
            self.error = problem

    def _row(self, job: Job, trial_id: str, outcome: Outcome | Exception | None) -> Row | None:
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            row = self._find(job.request)
            if row is not None:
                return row
            job.lost(self.died.pop(trial_id, None))
        elif outcome.row is not None:
            return outcome.row
        else:
            job.handed_back(outcome)
        if job.alone:
            self.alone.append(job.request)
        elif not job.spent:
            self._again.append(job)
        else:
            return self._fail(job.request, job.reason)
        return None

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """See ``took``, which the listener calls."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for ``Tuner.restore``, which nobody calls: a search is rebuilt from rows."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see ``__getstate__``."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


class _Listener(FIFOScheduler):
    """First come, first served. Feeds lanes, and tells the searcher why a worker died, which Tune does not."""

    def __init__(self, searcher: BoardSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        request = self._searcher.took(trial.trial_id, result["outcome"])
        if request is None:
            return str(FIFOScheduler.STOP)
        trial.temporary_state.ray_actor.feed.remote(request)  # Ray keeps the order: before the next step
        return str(FIFOScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """At every step of Tune: lanes that wait for a worker are looked at here."""
        if self._searcher.packing is not None:
            live = tune_controller.get_live_trials()
            self._searcher.packing.lanes.without_worker({t.trial_id for t in live if t.status == Trial.PENDING})
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._searcher.died[trial.trial_id] = trial.get_pickled_error() or trial.get_error()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_board(
    searcher: BoardSearcher,
    kit: Kit,
    resources: Mapping[str, float],
    slots: int,
    trainable: type[tune.Trainable] = SearchTrial,
) -> None:
    """Run the searcher's board to its end, or until it waits for trials that must run alone.

    ``resources`` of one trial; ``slots`` trials at once.
    """
    wanted: Any = dict(resources)
    if searcher.packing is not None:
        # Workers read this function as well: it names nothing of raybench, or each would import all of it for that.
        with_one, without = bundle(resources, 1.0), bundle(resources, 0.0)

        def wanted(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
            gpu = config["gpu"]
            return tune.PlacementGroupFactory([{**with_one, "GPU": gpu} if gpu else without])

    scratch = tempfile.mkdtemp(prefix="raybench-tune-")
    try:
        with _silent():
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(trainable, kit=kit), wanted),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=_Listener(searcher),
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


def bundle(resources: Mapping[str, float], gpu: float) -> dict[str, float]:
    """What a lane with a share of ``gpu`` takes, by Ray's names."""
    others = {name: amount for name, amount in with_gpu(resources, gpu).items() if name not in ("cpu", "gpu")}
    return {"CPU": resources["cpu"], "GPU": gpu, **others}


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

"""What Tune is handed and what becomes of what it brings back, without starting Ray."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import ray
from ray.tune.search import Searcher

from raybench.cluster import search
from raybench.cluster.search import BoardSearcher, SearchTrial
from raybench.cluster.trial_actor import Outcome
from raybench.errors import UserError


class Request(SimpleNamespace):
    @property
    def spec(self):
        return SimpleNamespace(trial_id=self.id)

    def again(self):
        return self

    def to_dict(self):
        return {"id": self.id}


class Board:
    """Two rounds of two requests; the second opens when the first is complete."""

    def __init__(self):
        self.waiting = [Request(id="a"), Request(id="b")]
        self.rows = []

    @property
    def done(self):
        return len(self.rows) == 4

    def next(self):
        return self.waiting.pop(0) if self.waiting else None

    def finished(self, row):
        self.rows.append(row)
        if len(self.rows) == 2:
            self.waiting = [Request(id="c"), Request(id="d")]


@pytest.fixture
def searcher():
    told, left = [], {}  # rows that the driver hears of, and those that workers leave behind, by id
    fail = lambda request, reason: {"id": request.id, "reason": reason}  # noqa: E731
    searcher = BoardSearcher(Board(), told.append, fail, lambda request: left.get(request.id))
    searcher.told, searcher.left = told, left
    return searcher


def bring(searcher, trial, outcome):
    """What Tune does when a step has ended; returns the id of the lane's next request."""
    request = searcher.took(trial, outcome)
    if request is None:
        searcher.on_trial_complete(trial, {"outcome": outcome, "done": True})
    return request and request["id"]


def row(name):
    return Outcome({"id": name})


def test_rounds_wait_for_each_other_and_the_end_is_said(searcher):
    assert [searcher.suggest(t)["request"]["id"] for t in ("t1", "t2")] == ["a", "b"]
    assert searcher.suggest("t3") is None
    assert bring(searcher, "t1", row("a")) is None  # the lane ends
    assert searcher.suggest("t3") is None
    assert bring(searcher, "t2", row("b")) == "c"  # the lane goes on
    assert searcher.suggest("t4")["request"]["id"] == "d"
    assert bring(searcher, "t4", row("d")) is None
    assert bring(searcher, "t2", row("c")) is None
    assert searcher.suggest("t5") == Searcher.FINISHED
    assert searcher.told == searcher._board.rows == [{"id": name} for name in "abdc"]
    assert searcher.error is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(None, "worker died in 3 of 3 tries"), (Outcome(None, "node1 has no CUDA device"), "node1 has no CUDA device")],
)
def test_three_tries_and_then_a_failed_row(searcher, bad, reason):
    searcher.suggest("t1")
    for attempt in range(3):
        assert searcher.told == []
        if bad is None:
            searcher.on_trial_complete(f"t{attempt + 1}", error=True)
        else:
            assert bring(searcher, f"t{attempt + 1}", bad) is None
        if attempt < 2:
            assert searcher.suggest(f"t{attempt + 2}")["request"]["id"] == "a"
    assert searcher.told == [{"id": "a", "reason": reason}]
    assert searcher.suggest("t4")["request"]["id"] == "b"


def test_a_worker_that_left_its_row_before_it_died_is_not_tried_again(searcher):
    searcher.suggest("t1")
    searcher.left["a"] = {"id": "a", "status": "timeout"}
    searcher.on_trial_complete("t1", error=True)
    assert searcher.told == [{"id": "a", "status": "timeout"}]
    assert searcher.suggest("t2")["request"]["id"] == "b"


def test_what_ran_out_of_memory_waits_to_run_alone_and_the_others_go_on(searcher):
    for trial in ("t1", "t2"):
        searcher.suggest(trial)
    bring(searcher, "t1", Outcome(None, "out of memory: 3 GiB", memory=True))
    assert searcher.suggest("t3") is None
    bring(searcher, "t2", row("b"))
    assert searcher.suggest("t3") == Searcher.FINISHED
    assert [request.id for request in searcher.alone] == ["a"]
    assert (searcher.error, searcher.told) == (None, [{"id": "b"}])


def test_a_worker_that_ray_ended_for_memory_is_no_try_and_a_drained_node_neither(searcher):
    searcher.suggest("t1")
    searcher.died["t1"] = "Task was killed due to the node running low on memory."
    searcher.on_trial_complete("t1", None, error=True)
    assert [request.id for request in searcher.alone] == ["a"]
    drained = ray.exceptions.RayActorError(preempted=True, error_msg="The node was drained.")
    for _ in range(5):
        assert searcher.suggest("t2")["request"]["id"] == "b"
        searcher.died["t2"] = drained
        searcher.on_trial_complete("t2", None, error=True)
    assert searcher.told == []


def test_an_error_ends_the_search_and_is_kept(searcher):
    searcher.suggest("t1")
    bring(searcher, "t1", UserError("the disk is full"))
    assert searcher.suggest("t2") == Searcher.FINISHED
    assert str(searcher.error) == "the disk is full"
    assert searcher.told == []


def test_a_board_that_nobody_feeds_is_an_error_and_no_hang(searcher):
    searcher._board.waiting = []
    assert searcher.suggest("t1") is None
    assert searcher.suggest("t1") == Searcher.FINISHED
    assert "waits for a trial that nobody runs" in str(searcher.error)


def test_tune_pickles_nothing_of_it(searcher):
    searcher._board.lock = open  # anything; a lock would not pickle
    assert "_board" not in vars(pickle.loads(pickle.dumps(searcher)))


class Runner:
    """In place of ``TrialRunner``."""

    made = 0

    def __init__(self, kit):
        Runner.made += 1
        self.kit = kit

    def run(self, request):
        if isinstance(request["raise"], Exception):
            raise request["raise"]
        return row(request["raise"])


@pytest.fixture
def trainable(monkeypatch):
    monkeypatch.setattr(search, "TrialRunner", Runner)
    Runner.made = 0
    trial = SearchTrial.__new__(SearchTrial)  # Tune's own constructor wants a running Ray
    trial.setup({"request": {"raise": "a"}}, kit=None)
    return trial


def test_a_reused_trainable_keeps_its_runner(trainable):
    assert trainable.step() == {"outcome": row("a")}
    trainable.feed({"raise": "b"})
    assert trainable.step()["outcome"] == row("b")
    assert trainable.reset_config({"request": {"raise": "c"}}) is True
    assert trainable.step()["outcome"] == row("c")
    assert Runner.made == 1


def test_errors_travel_instead_of_killing_the_warm_actor(trainable):
    trainable.reset_config({"request": {"raise": UserError("no such plug-in")}})
    assert str(trainable.step()["outcome"]) == "no such plug-in"
    trainable.reset_config({"request": {"raise": KeyError("a bug of ours")}})
    result = trainable.step()["outcome"]
    assert isinstance(result, RuntimeError)
    assert "in run" in str(result)  # where it happened
    assert "KeyError: 'a bug of ours'" in str(result)

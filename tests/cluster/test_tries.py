"""Whose fault it is that a worker did not answer, told from the exceptions that Ray raises."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from raybench.cluster.trial_actor import Outcome
from raybench.cluster.tries import LOST, Job
from raybench.ledger import MEASURE, Request


def job(**context):
    return Job(Request(SimpleNamespace(trial_id="t"), context))


def test_a_worker_that_dies_every_time_is_three_tries():
    poisoned = job(attempt=4)  # raybench retry gave it this number
    for tries in (1, 2, 3):
        assert not poisoned.spent
        poisoned.lost(ray.exceptions.ActorDiedError())
        assert (poisoned.tries, poisoned.alone) == (tries, False)
    assert poisoned.spent
    assert poisoned.reason == "worker died in 3 of 3 tries"
    assert poisoned.request.context["attempt"] == 6  # of the failed row: its third


@pytest.mark.parametrize(
    "error", [ray.exceptions.OutOfMemoryError("the node was low on memory"), "running low on memory"]
)
def test_memory_is_told_from_a_crash(error):
    hungry = job()
    hungry.lost(error)
    assert (hungry.tries, hungry.alone, hungry.request.context["attempt"]) == (0, True, 1)
    assert hungry.reason.startswith("out of memory: ")


def test_a_drained_node_is_not_the_trials_fault():
    moved = job()
    for _ in range(5):
        moved.lost(ray.exceptions.RayActorError(preempted=True, error_msg="drained"))
    assert (moved.tries, moved.spent, moved.request.context["attempt"]) == (0, False, 5)


def test_a_worker_without_the_device_is_a_try_but_no_attempt():
    returned = job()
    returned.handed_back(Outcome(None, "node1 has no CUDA device"))
    assert (returned.tries, returned.reason, returned.request.context) == (1, "node1 has no CUDA device", {})
    returned.handed_back(Outcome(None, "out of memory: 3 GiB", memory=True))
    assert (returned.tries, returned.alone, returned.request.context) == (1, True, {"attempt": 1})


def test_what_is_measured_of_a_row_keeps_its_number():
    measured = job(attempt=2, **{MEASURE: ["rmia_auc"]})
    measured.lost(ray.exceptions.ActorDiedError())
    assert measured.request.context["attempt"] == 2


def test_all_that_ray_raises_for_a_lost_worker_is_caught():
    errors = ray.exceptions
    for error in (errors.ActorDiedError, errors.ActorUnavailableError, errors.OutOfMemoryError, errors.NodeDiedError):
        assert issubclass(error, LOST)

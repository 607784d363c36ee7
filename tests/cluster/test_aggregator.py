"""A row that was acknowledged is durable; a killed aggregator comes back with what it had written."""

from __future__ import annotations

import os
import signal
import time
import uuid

import pytest
import ray

from raybench.cluster.aggregator import NAME, Aggregator, start_aggregator, wait_for
from raybench.errors import UserError
from raybench.leaderboard.schema import CORE, INT, REAL, TIME
from raybench.leaderboard.store import ResultStore


def row(trial_id, **columns):
    words = {"phase": "final", "status": "ok", "hparams": "{}", "spec": "{}"}
    kinds = {INT: 0, REAL: 0.0, TIME: None}
    required = {c.name: words.get(c.name, kinds.get(c.type, "x")) for c in CORE if c.required}
    return {**required, "trial_id": trial_id, **columns}


@pytest.fixture
def aggregator(local_ray, tmp_path):
    actor = start_aggregator(str(tmp_path / "results"), [], f"aggregator-{uuid.uuid4().hex}", local_ray.node_id)
    yield actor
    ray.kill(actor)


def test_acknowledged_rows_are_on_storage(aggregator, tmp_path):
    for index in range(3):
        wait_for(aggregator.append.remote([row(f"t{index}")]))
        assert ResultStore(tmp_path / "results").ids() == {f"t{i}" for i in range(index + 1)}


@pytest.mark.parametrize("how", ["ray.kill", "SIGKILL"])
def test_killed_in_the_middle_it_loses_and_repeats_nothing(aggregator, tmp_path, how):
    waiting = []
    for index in range(60):
        waiting.append(aggregator.append.remote([row(f"t{index:02d}")]))
        if index == 20:
            wait_for(waiting[5])
            if how == "ray.kill":
                ray.kill(aggregator, no_restart=False)
            else:
                os.kill(ray.get(aggregator.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
    for reference in waiting:
        wait_for(reference)
    wait_for(aggregator.append.remote([row("t00"), row("t59")]))
    stored = ResultStore(tmp_path / "results").trials(attempts=True)["trial_id"]
    assert sorted(stored) == [f"t{i:02d}" for i in range(60)]


def test_it_rebuilds_itself_from_the_store(tmp_path):
    first = Aggregator(str(tmp_path), [])
    first.append([row("a", node="first")])
    Aggregator(str(tmp_path), []).append([row("a", node="second"), row("b")])
    assert list(ResultStore(tmp_path).trials(attempts=True)["node"].fillna("-")) == ["first", "-"]


def test_named_in_its_own_namespace(local_ray, tmp_path):
    handles = {}
    for namespace in ("space-a", "space-b"):
        handles[namespace] = start_aggregator(str(tmp_path / namespace), [], namespace, local_ray.node_id)
        wait_for(handles[namespace].append.remote([row(namespace)]))
    assert ray.get_actor(NAME, namespace="space-a") == handles["space-a"]
    assert ResultStore(tmp_path / "space-b").ids() == {"space-b"}
    for handle in handles.values():
        ray.kill(handle)


def test_an_error_that_people_can_mend_is_one_line(aggregator, tmp_path):
    wait_for(aggregator.append.remote([row("a")]))
    part = next((tmp_path / "results" / "trials").iterdir())
    part.write_bytes(b"damaged")
    ray.kill(aggregator, no_restart=False)

    def append_for_a_minute():
        deadline = time.time() + 60
        while time.time() < deadline:
            wait_for(aggregator.append.remote([row("b")]))

    with pytest.raises(UserError, match="damaged"):  # it restarts, and reads what is there
        append_for_a_minute()

"""Single flight: one holder of a key at a time, and a dead one does not keep it."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import pytest
import ray

from raybench.cluster.lease import ClusterLease, Coordinator, start_coordinator


@pytest.fixture
def coordinator(local_ray):
    actor = start_coordinator(f"lease-{uuid.uuid4().hex}", local_ray.node_id, lapse_s=3.0)
    yield actor
    ray.kill(actor)


class Maker:
    """A worker that makes the value of a key once, as a reference model is trained."""

    def __init__(self, coordinator, folder):
        self.lease = ClusterLease(coordinator, beat_s=0.3)
        self.folder = Path(folder)

    def pid(self):
        return os.getpid()

    def make(self, key, seconds):
        value = self.folder / key
        with self.lease(key):
            if not value.exists():
                with (self.folder / f"{key}-puts").open("a") as puts:
                    puts.write(f"{os.getpid()}\n")
                time.sleep(seconds)
                value.write_text("made")
        return time.time()

    def hold(self, key, seconds):
        with self.lease(key):
            (self.folder / f"{key}-held").touch()
            time.sleep(seconds)


@pytest.fixture
def makers(coordinator, tmp_path):
    actors = [ray.remote(Maker).options(num_cpus=0).remote(coordinator, str(tmp_path)) for _ in range(2)]
    ray.get([actor.pid.remote() for actor in actors])
    yield actors
    for actor in actors:
        ray.kill(actor)


def test_two_workers_make_a_value_once(makers, tmp_path):
    ray.get([actor.make.remote("model", 1.0) for actor in makers])
    assert len((tmp_path / "model-puts").read_text().split()) == 1
    # longer than the lapse: the heartbeat keeps the key
    ray.get([actor.make.remote("slow", 4.5) for actor in makers])
    assert len((tmp_path / "slow-puts").read_text().split()) == 1


def test_different_keys_do_not_wait_for_each_other(makers, tmp_path):
    started = time.time()
    ends = ray.get([actor.make.remote(key, 1.5) for actor, key in zip(makers, ("a", "b"), strict=True)])
    assert max(ends) - started < 2.9


def test_the_key_of_a_killed_holder_goes_to_the_next(makers, tmp_path):
    victim, other = makers
    pid = ray.get(victim.pid.remote())
    held = victim.hold.remote("model", 60.0)
    while not (tmp_path / "model-held").exists():
        time.sleep(0.05)
    waiting = other.make.remote("model", 0.0)
    assert ray.wait([waiting], timeout=1.0) == ([], [waiting])
    os.kill(pid, signal.SIGKILL)
    ray.get(waiting, timeout=30)
    assert (tmp_path / "model").read_text() == "made"
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(held)


def test_an_exception_frees_the_key(coordinator):
    lease = ClusterLease(coordinator)
    with pytest.raises(ZeroDivisionError), lease("model"):
        1 / 0  # noqa: B018
    assert ray.get(coordinator.acquire.remote("model", "next"))


def test_holders_are_told_apart_and_heard():
    """The rules themselves, on a coordinator without Ray."""
    coordinator = Coordinator(lapse_s=0.3)
    assert coordinator.acquire("k", "first")
    assert coordinator.acquire("k", "first")  # a retried call
    assert not coordinator.acquire("k", "second")
    for _ in range(4):
        time.sleep(0.15)
        coordinator.beat("k", "first")
        assert not coordinator.acquire("k", "second")
    coordinator.release("k", "second")  # not its own
    assert not coordinator.acquire("k", "second")
    coordinator.release("k", "first")
    assert coordinator.acquire("k", "second")
    time.sleep(0.35)
    assert coordinator.acquire("k", "third")
    coordinator.beat("k", "second")  # too late
    assert not coordinator.acquire("k", "second")


def test_a_restarted_coordinator_learns_its_holders():
    coordinator = Coordinator()
    coordinator.beat("k", "first")
    assert not coordinator.acquire("k", "second")

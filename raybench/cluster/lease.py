"""Single flight over a cluster: one holder of a key at a time, by a coordinator actor that hears heartbeats.

A holder that falls silent (its process was killed, its node lost power) loses the key after ``LAPSE_S``. All that
a lease guards is content-addressed and written whole, so two holders at once (a process that slept, a coordinator
that was restarted) cost time and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAME = "coordinator"
BEAT_S = 1.0
LAPSE_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5  # between questions for a key that another one holds


class Coordinator:
    """Who holds which key, by this process's own clock."""

    def __init__(self, lapse_s: float = LAPSE_S) -> None:
        self._lapse_s = lapse_s
        self._holders: dict[str, tuple[str, float]] = {}  # key -> holder, last heard

    def acquire(self, key: str, holder: str) -> bool:
        """Grant the key unless a holder that was heard of lately has it."""
        now = time.monotonic()
        current = self._holders.get(key)
        if current is not None and current[0] != holder and now - current[1] < self._lapse_s:
            return False
        self._holders[key] = (holder, now)
        return True

    def beat(self, key: str, holder: str) -> None:
        """The holder lives. A restarted coordinator learns its holders again this way."""
        if self._holders.get(key, (holder,))[0] == holder:
            self._holders[key] = (holder, time.monotonic())

    def release(self, key: str, holder: str) -> None:
        """Free the key if this holder has it."""
        if self._holders.get(key, ("",))[0] == holder:
            del self._holders[key]


class ClusterLease:
    """``raybench.once.Lease`` for the processes of a run: ``with lease(key): ...``."""

    def __init__(self, coordinator: Any, beat_s: float = BEAT_S) -> None:
        self._coordinator = coordinator
        self._beat_s = beat_s

    @contextlib.contextmanager
    def __call__(self, key: str) -> Iterator[None]:
        """Wait for the key, hold it with a heartbeat, free it."""
        holder, pause = uuid.uuid4().hex, FIRST_WAIT_S
        while not ray.get(self._coordinator.acquire.remote(key, holder)):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT_S)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._beat_s):
                self._coordinator.beat.remote(key, holder)

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            ray.get(self._coordinator.release.remote(key, holder))


def start_coordinator(namespace: str, node_id: str, lapse_s: float = LAPSE_S) -> Any:
    """Handle of the run's coordinator, on node ``node_id`` (the driver's) while that lives."""
    actor = ray.remote(Coordinator).options(
        name=NAME,
        namespace=namespace,
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=True),
    )
    return actor.remote(lapse_s)

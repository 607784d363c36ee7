"""A pool of warm actors for fixed work: one trial in flight per actor, dead ones replaced, no trial lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.cluster.aggregator import find_row, last_line
from raybench.cluster.trial_actor import Kit, Outcome, TrialActor
from raybench.cluster.tries import LOST, Job
from raybench.errors import UserError
from raybench.ledger import Request
from raybench.serial import Load

START_S = 600.0  # an autoscaler may need minutes to bring a node


@dataclass(frozen=True)
class Place:
    """What an actor of the pool takes. ``node_id``: where it should be; None leaves that to Ray."""

    cpu: float
    gpu: float
    node_id: str | None = None
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Worker:
    actor: Any
    place: Place


class Pool:
    """Warm actors at the given places; kept between calls of ``run`` until ``close``."""

    def __init__(self, kit: Kit, places: Sequence[Place], actor: type[TrialActor] = TrialActor) -> None:
        self.places = list(places)
        self._kit = kit
        self._actor = actor
        self._idle: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}  # answers to ready()
        self._busy: dict[Any, tuple[_Worker, Job]] = {}
        self._queue: deque[Job] = deque()

    def run(
        self, requests: Sequence[Request], finished: Callable[[Mapping[str, Any]], None], fail: Callable[..., Any]
    ) -> list[Request]:
        """Run all requests. ``fail(request, reason)`` makes the durable row of one that cannot be run. Returns those
        that ran out of memory and have no row yet: they need more than a place of this pool."""
        queue = self._queue = deque(Job(request) for request in requests)
        since, alone = time.monotonic(), []
        while queue or self._busy:
            self._start(len(queue))
            while queue and self._idle:
                worker, job = self._idle.pop(0), queue.popleft()
                self._busy[worker.actor.run.remote(job.request.to_dict())] = (worker, job)
            ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=5.0)
            for reference in ready:
                since = time.monotonic()
                if reference in self._starting:
                    self._started(reference)
                    continue
                job, row = self._collect(reference)
                if row is None and job.alone and not self._kit.last:
                    alone.append(job.request)
                elif row is None and not job.spent and not job.alone:
                    queue.append(job)
                else:
                    finished(fail(job.request, job.reason) if row is None else row)
            if not self._busy and not self._idle and time.monotonic() - since > START_S:
                raise UserError(
                    f"the cluster must have room for one worker ({self.places[0]}), none started for {START_S:.0f} s; "
                    "look at ray status, free it or add a node"
                )
        return alone

    def load(self) -> Load:
        """See ``Executor``."""
        return Load(len(self._busy), len(self._queue), len(self.places))

    def close(self) -> None:
        """Let go of all resources. Idle workers may finish (flush what they gather, such as coverage)."""
        for worker in self._idle:
            worker.actor.__ray_terminate__.remote()
        for worker in [*self._starting.values(), *(worker for worker, _ in self._busy.values())]:
            ray.kill(worker.actor)
        self._idle, self._starting, self._busy = [], {}, {}

    def _start(self, waiting: int) -> None:
        """Start workers at free places, no more than there are jobs for."""
        mine = [*self._idle, *self._starting.values(), *(worker for worker, _ in self._busy.values())]
        free = list(self.places)
        for worker in mine:
            if worker.place in free:
                free.remove(worker.place)
        for place in free[: max(0, waiting - len(self._idle) - len(self._starting))]:
            where = "DEFAULT" if place.node_id is None else NodeAffinitySchedulingStrategy(place.node_id, soft=True)
            options = {"num_cpus": place.cpu, "num_gpus": place.gpu, "scheduling_strategy": where}
            options["resources"] = dict(place.custom)
            actor = ray.remote(self._actor).options(**options).remote(self._kit)
            self._starting[actor.ready.remote()] = _Worker(actor, place)

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except LOST as error:
            if "creation task" in str(error):  # its code could not be loaded: the next one will not do better
                reason = last_line(error)
                raise UserError(
                    f"workers must be able to import raybench, one could not ({reason}); install the same raybench "
                    "on every node, or submit the job with --working-dir"
                ) from error
            return  # a node went away; the next round starts another
        self._idle.append(worker)

    def _collect(self, reference: Any) -> tuple[Job, Mapping[str, Any] | None]:
        """The job of a finished call, and its row if it has one."""
        worker, job = self._busy.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except LOST as error:
            ray.kill(worker.actor)  # one that is merely out of reach must not come back beside its replacement
            row = find_row(self._kit.aggregator, job.request)
            if row is None:
                job.lost(error)
            return job, row
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        if outcome.row is None:
            job.handed_back(outcome)
        if outcome.row is not None or outcome.memory:
            self._idle.append(worker)
            return job, outcome.row
        # The place goes with its worker while others remain, or a node without the device would eat the queue.
        ray.kill(worker.actor)
        if len(self.places) > 1:
            self.places.remove(worker.place)
        return job, None

"""The executor on a cluster: searches through Ray Tune, fixed work through a pool of warm actors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from raybench.board import Board
from raybench.cluster.aggregator import find_row, start_aggregator, wait_for
from raybench.cluster.gauges import Gauges
from raybench.cluster.lease import start_coordinator
from raybench.cluster.optuna_ask import ask_optuna_search
from raybench.cluster.packing import Packing
from raybench.cluster.pool import Place, Pool
from raybench.cluster.search import BoardSearcher, run_board
from raybench.cluster.session import Session, custom_of, fits, with_gpu
from raybench.cluster.shared import SharedTrainings
from raybench.cluster.trial_actor import Kit, node_name
from raybench.footprint import Footprints
from raybench.lanes import Lanes
from raybench.leaderboard.schema import MetricInfo
from raybench.ledger import MEASURE, Request, Row
from raybench.measuring import receipt, unmeasured
from raybench.rounds import Ask
from raybench.serial import IDLE, Load
from raybench.shares import Shares
from raybench.spec import ORACLE
from raybench.trial import failed_row
from raybench.workshop import Placement, Settings, Workshop

Finished = Callable[[Row], None]


class RayExecutor:
    """``raybench.serial.Executor`` on a Ray session.

    ``resources``: what the spec says one trial takes; ``note`` says where the cluster cannot give it. ``device_types``:
    of the plan; where it has both, trials on CPU take no GPU. ``measured``: on CUDA, a trial takes the share of a GPU
    that its measured footprint needs.
    ``exclusive``: references and finals have a node to themselves (``timing: exclusive``). On CUDA they always have
    a GPU to themselves, because seconds of trials that share one are not comparable; searches and oracles share.
    """

    def __init__(
        self,
        results: str,
        metrics: Sequence[MetricInfo],
        settings: Settings,
        resources: Mapping[str, float],
        session: Session,
        exclusive: bool = False,
        device_types: Sequence[str] = ("cpu",),
        measured: bool = False,
    ) -> None:
        self.ask: Ask = ask_optuna_search
        self._session = session
        fit = session.fit(resources)
        self._resources, self.note = fit.resources, fit.note
        if measured and "cuda" not in device_types:
            self._resources = with_gpu(fit.resources, 0.0)
        self._exclusive = exclusive
        self._pool: Pool | None = None
        self._searcher: BoardSearcher | None = None
        self._slots = 0
        self._gauges = Gauges(settings.experiment)
        session.check(results, settings.store)
        self._shares = Shares(self._resources["gpu"], both=len(device_types) > 1)
        if measured and "cuda" in device_types:
            size = session.gpu_bytes(self._resources)
            if size:  # an autoscaler has still to bring the first GPU: every trial has one to itself then
                self._shares = Shares(1.0, Footprints(settings.store), size, both=len(device_types) > 1)
        self._aggregator = start_aggregator(results, metrics, session.namespace, session.node_id)
        self._coordinator = start_coordinator(session.namespace, session.node_id)
        wait_for(self._aggregator.append.remote([]))  # a folder that cannot be written is found here
        self._shared = SharedTrainings(session, settings, self._resources, self._release)
        self._kit = Kit(settings, self._aggregator, self._coordinator)
        here = Placement(ray_version=ray.__version__, node=node_name())
        self._shop = Workshop(settings, placement=here)  # for rows that the driver writes itself

    def record(self, records: list[dict[str, Any]]) -> None:
        """See ``Executor``."""
        if records:
            wait_for(self._aggregator.append_searches.remote(records))

    def run_fixed(self, requests: Sequence[Request], finished: Finished) -> None:
        """See ``Executor``."""
        requests = self._trainable(requests, finished)
        if not requests:
            return
        groups: dict[float, list[Request]] = {}
        for request in requests:
            groups.setdefault(self._share(request), []).append(request)
        for gpu, group in sorted(groups.items(), reverse=True):
            hungry = self._run_pool(group, gpu, finished)
            for request in hungry:
                self._shares.too_little(request.spec, gpu)
            self._run_alone(hungry, finished)
            for request in group:
                self._shares.learned(request.spec)
        self._gauges.show(self.load())

    def _share(self, request: Request) -> float:
        """Of a GPU. What is timed has one to itself, and so has what measures rows where that is not known."""
        gpu = self._shares.of(request.spec)
        alone = _timed(request) and request.spec.problem.device_type == "cuda"
        return max(1.0, gpu) if alone or (self._shares.measured(request.spec) and MEASURE in request.context) else gpu

    def _run_pool(self, requests: Sequence[Request], gpu: float, finished: Finished) -> list[Request]:
        """Run a group of one share; returns those that need more memory than it has."""
        places = self._places(
            with_gpu(self._resources, gpu),
            any(_timed(request) and request.spec.problem.device_type == "cpu" for request in requests),
        )
        if self._pool is None or self._pool.places != places:
            self._release()
            alone = self._exclusive or places[0].gpu >= 1 or self._alone(len(places))
            self._pool = Pool(dataclasses.replace(self._kit, gpu=places[0].gpu, exclusive=alone), places)
        return self._pool.run(requests, self._counting(finished), self._fail)

    def run_searches(self, board: Board, finished: Finished) -> None:
        """See ``Executor``."""
        if board.done:
            return
        self._release()  # Tune needs its CPUs
        self._shared.run(request.spec for request in board.plan.references())
        # Lanes of several shares: as many as there are CPUs for; how many fit on the GPUs is the packing's business.
        vary = self._shares.vary
        slots = self._session.slots(with_gpu(self._resources, 0.0) if vary else self._resources)
        self._slots = slots
        kit = dataclasses.replace(self._kit, gpu=self._resources["gpu"], exclusive=self._alone(slots))

        def taken(row: Row) -> None:
            board.finished(row)
            finished(row)

        while not board.done:
            packing = Packing(self._shares, Lanes(self._session.gpus(self._resources), slots)) if vary else None
            searcher = BoardSearcher(board, self._counting(finished), self._fail, self._find, packing)
            self._searcher = searcher
            run_board(searcher, kit, self._resources, slots)
            self._gauges.show(self.load())
            self._searcher = None
            self._run_alone(searcher.alone, taken)

    def load(self) -> Load:
        """See ``Executor``."""
        pool, searcher = self._pool, self._searcher  # the heartbeat's thread asks while they change
        if searcher is not None:
            return searcher.load(self._slots)
        return IDLE if pool is None else pool.load()

    def _trainable(self, requests: Sequence[Request], finished: Finished) -> list[Request]:
        """Have the models that several workers train together, and leave out the requests of those that failed."""
        specs = [r.spec for r in requests if r.spec.problem.train_workers > 1 and not r.context.get("skip")]
        failed = self._shared.run(specs)
        for request in requests:
            if request.spec.trial_id in failed:
                finished(self._fail(request, failed[request.spec.trial_id]))
        return [request for request in requests if request.spec.trial_id not in failed]

    def close(self) -> None:
        """End the workers and the two service actors; the session stays open."""
        self._release()
        for actor in (self._aggregator, self._coordinator):
            ray.kill(actor)

    def _run_alone(self, requests: Sequence[Request], finished: Finished) -> None:
        """What ran out of memory once gets a node, and a GPU, to itself: one trial after the other, no third chance."""
        kinds: dict[float, list[Request]] = {}
        for request in requests:
            gpu = self._resources["gpu"] if self._shares.of(request.spec) else 0.0
            kinds.setdefault(max(1.0, gpu) if gpu else 0.0, []).append(request)
        for gpu, group in kinds.items():
            self._run_one_by_one(group, with_gpu(self._resources, gpu), finished)

    def _run_one_by_one(self, requests: Sequence[Request], wanted: Mapping[str, float], finished: Finished) -> None:
        """On the largest node that has what they want."""
        self._release()
        nodes = [n for n in self._session.nodes() if fits(n["Resources"], wanted)]
        largest = max(nodes, key=lambda n: n["Resources"].get("memory", 0.0), default=None)
        place = Place(
            wanted["cpu"], wanted["gpu"], custom=custom_of(wanted)
        )  # an autoscaler's node that has gone by now
        if largest is not None:
            place = dataclasses.replace(place, cpu=largest["Resources"]["CPU"], node_id=largest["NodeID"])
        self._pool = Pool(dataclasses.replace(self._kit, gpu=place.gpu, exclusive=True, last=True), [place])
        self._pool.run(requests, self._counting(finished), self._fail)
        self._release()

    def _places(self, wanted: Mapping[str, float], nodes_apart: bool) -> list[Place]:
        """``nodes_apart``: ``timing: exclusive`` gives these a node each; on CUDA a GPU to themselves is enough."""
        cpu, gpu, custom = wanted["cpu"], wanted["gpu"], custom_of(wanted)
        if self._exclusive and nodes_apart:
            nodes = {n["NodeID"]: n["Resources"] for n in self._session.nodes() if fits(n["Resources"], wanted)}
            whole = [Place(found["CPU"], gpu, node_id, custom) for node_id, found in sorted(nodes.items())]
            if whole:  # none where an autoscaler has still to bring the first node: one trial at a time then
                return whole
            return [Place(cpu, gpu, custom=custom)]
        return [Place(cpu, gpu, custom=custom)] * self._session.slots(wanted)

    def _alone(self, slots: int) -> bool:
        """A local Ray with one slot runs one trial at a time."""
        return self._session.local and slots == 1

    def _counting(self, finished: Finished) -> Finished:
        """Rows reach Ray's metrics on their way to the driver."""

        def counted(row: Row) -> None:
            self._gauges.count(row)
            self._gauges.show(self.load())
            finished(row)

        return counted

    def _find(self, request: Request) -> Row | None:
        return find_row(self._aggregator, request)

    def _fail(self, request: Request, reason: str) -> Row:
        if MEASURE in request.context:
            records = unmeasured(request.spec, request.context, self._shop, reason)
            wait_for(self._aggregator.append_metrics.remote(records))
            return receipt(request.spec)
        row = failed_row(request.spec, request.context, self._shop, reason)
        wait_for(self._aggregator.append.remote([row]))
        return row

    def _release(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _timed(request: Request) -> bool:
    """Whether seconds of this fixed work are compared with those of others."""
    return request.spec.phase != ORACLE and MEASURE not in request.context

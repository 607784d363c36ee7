"""Reference models that several workers train together (``train_workers`` of a problem), by Ray Train's TorchTrainer.

The driver has them trained before their rows are asked for, so that no worker of the pool waits for resources that the
pool itself holds. Each training is a task of its own that takes no CPU; as many run at once as fit. Checkpoints are in
the store (``raybench.distributed``) and not Ray's: a lost worker, a lost node or a killed driver costs what came after
the last one. Own trainings and small models stay in one process.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
import torch

from raybench.cluster.aggregator import last_line
from raybench.cluster.session import Session, custom_of, with_gpu
from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.problem import Problem, load_data, make_problem
from raybench.reference_training import ORDERS, ORIGINAL, RETRAINED, Order
from raybench.references import KIND
from raybench.registry import METHODS
from raybench.shared_training import TRIES, Commission, take_part
from raybench.spec import CLEAN, SHADOW, ProblemSpec, TrialSpec
from raybench.workshop import Settings


class SharedTrainings:
    """Trains what is missing in the store. ``resources``: of one worker, which on a GPU has it to itself. ``release()``
    is called before a training starts, to free what it needs."""

    def __init__(
        self, session: Session, settings: Settings, resources: Mapping[str, float], release: Callable[[], None]
    ) -> None:
        self._session = session
        self._settings = settings
        self._resources = resources
        self._release = release
        self._problems: dict[str, Problem] = {}
        self._failed: dict[str, str] = {}  # by key; not tried again in this run

    def run(self, specs: Iterable[TrialSpec]) -> dict[str, str]:
        """Have the reference models of these trials in the store. Returns, by trial id, why a model of a trial could
        not be trained."""
        store = ContentStore(self._settings.store)
        orders: dict[str, Order] = {}
        needed: dict[str, list[str]] = {}
        for spec in specs:
            for order in self._orders(spec):
                orders[order.key] = order
                needed.setdefault(spec.trial_id, []).append(order.key)
        missing = [order for key, order in orders.items() if key not in self._failed and not store.has(KIND, key)]
        if missing:
            self._release()
            self._train(missing)
        return {trial_id: self._failed[key] for trial_id, keys in needed.items() for key in keys if key in self._failed}

    def _orders(self, spec: TrialSpec) -> list[Order]:
        """The shared orders that a trial needs: a reference its own model, a method its original and the reference."""
        if spec.problem.train_workers == 1:
            return []
        problem = self._problem(spec.problem)
        if not METHODS[spec.method].reference:
            wanted = [(ORIGINAL, spec.original_index), (RETRAINED, 0)]
        elif spec.method == "original":
            wanted = [(ORIGINAL, spec.unlearn_seed)]
        else:
            wanted = [(spec.variant if spec.variant in (CLEAN, SHADOW) else RETRAINED, spec.unlearn_seed)]
        orders = [ORDERS[kind](problem, index, spec.training) for kind, index in wanted]
        return [order for order in orders if order.workers > 1]

    def _problem(self, spec: ProblemSpec) -> Problem:
        """On the CPU: the driver needs what a model is trained on only to know its key."""
        if spec.id not in self._problems:
            raw, _ = load_data(spec.dataset, self._settings.data_root, self._settings.download)
            self._problems[spec.id] = make_problem(spec, raw, torch.device("cpu"))
        return self._problems[spec.id]

    def _train(self, orders: list[Order]) -> None:
        """Train all, as many at once as fit."""
        waiting, flying = deque(orders), dict[Any, Order]()
        busy = 0
        while waiting or flying:
            while waiting:
                order = waiting[0]
                if busy + order.workers > self._room(order) and busy:
                    break
                waiting.popleft()
                busy += order.workers
                task = ray.remote(_fit).options(num_cpus=0, max_retries=TRIES - 1)
                worker = self._worker(order)
                flying[task.remote(Commission.of(self._settings, order), order.workers, worker)] = order
            ready, _ = ray.wait(list(flying), num_returns=1)
            order = flying.pop(ready[0])
            busy -= order.workers
            try:
                ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                self._failed[order.key] = f"{order.kind} model by {order.workers} workers: {last_line(error)}"
            except ray.exceptions.RayError as error:
                self._failed[order.key] = f"{order.kind} model by {order.workers} workers: {last_line(error)}"

    def _worker(self, order: Order) -> dict[str, float]:
        gpu = max(1.0, self._resources["gpu"]) if order.problem.spec.device_type == "cuda" else 0.0
        return with_gpu(self._resources, gpu)

    def _room(self, order: Order) -> int:
        """How many workers run at once; ``UserError`` if fewer than the order needs."""
        worker = self._worker(order)
        room = self._session.slots(worker)
        if room < order.workers:
            raise UserError(
                f"train_workers must fit on the cluster at once, got {order.workers} of {{cpu: {worker['cpu']:g}, gpu: "
                f"{worker['gpu']:g}}} and room for {room}; lower it, raise --slots or add a node"
            )
        return room


def _fit(commission: Commission, workers: int, resources: Mapping[str, float]) -> None:
    """In a task: one TorchTrainer run. Starts again where Ray Train itself gives up (a worker that died before its
    first poll), and goes on from the last checkpoint then."""
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = commission.problem.device_type == "cuda"
    amounts = {"CPU": resources["cpu"], **({"GPU": resources["gpu"]} if cuda else {}), **custom_of(resources)}
    for left in reversed(range(TRIES)):
        with tempfile.TemporaryDirectory(prefix="raybench-train-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                _worker_loop,
                train_loop_config={"commission": commission},
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker=amounts),
                run_config=RunConfig(
                    name="shared", storage_path=scratch, failure_config=FailureConfig(max_failures=TRIES - 1)
                ),
                torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            )
            try:
                trainer.fit()
                return
            except WorkerGroupError as error:
                users = [cause for cause in error.worker_failures.values() if isinstance(cause, UserError)]
                reasons = dict.fromkeys(last_line(cause) for cause in error.worker_failures.values())
                raise users[0] if users else RuntimeError("; ".join(reasons)) from error
            except ControllerError as error:
                cause = error.controller_failure
                if not left or not isinstance(cause, ray.exceptions.RayActorError):
                    raise RuntimeError(last_line(cause)) from error


def _worker_loop(config: Mapping[str, Any]) -> None:
    """In each worker of the TorchTrainer, which has set up the process group and chosen the device."""
    take_part(config["commission"])

"""The warm process around trials: settings of a run, where it runs, and what stays loaded from trial to trial."""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raybench.content_store import ContentStore
from raybench.data import RawData
from raybench.errors import UserError
from raybench.footprint import Footprints
from raybench.heap import keep_freed_memory
from raybench.logs import open_log
from raybench.once import Lease, OnceMemory
from raybench.problem import Problem, load_data, make_problem
from raybench.reference_training import Order
from raybench.references import References, no_lease, refuse_shared
from raybench.registry import load_plugins
from raybench.spec import Choice, ProblemSpec

MEMORY_PROBLEMS = 6  # they share the images of a dataset, unless the scenario changes images


class WrongDevice(Exception):
    """This worker lacks the device type that the trial is pinned to; hand it to another one."""


@dataclass(frozen=True)
class Settings:
    """What every process of a run needs to know and what is not part of a trial's identity."""

    experiment: str
    store: str
    metrics: tuple[str, ...]
    artifacts: str | None = None  # folder for outputs and weights of finals
    logs: str | None = None  # folder for the logs of each process; None where files cannot grow (object stores)
    data_root: str | None = None
    download: bool = False
    plugins: tuple[str, ...] = ()
    evaluate_seed: int = 0
    oracles: int = 0  # models a world of the oracle pool, for per-example attacks
    shadows: int = 0  # models of random halves of the data in it
    keep: tuple[str, ...] = ("outputs",)
    use_once: bool = True
    curves: bool = True
    time_limit_s: float | None = None
    checkpoint_s: float = 60.0  # between checkpoints of a reference model that several processes train
    git_commit: str = ""


@dataclass(frozen=True)
class Placement:
    """Where a trial runs: filled in by the executor."""

    device_ids: str = ""
    ray_version: str | None = None
    exclusive: bool = True
    node: str = field(default_factory=platform.node)


class Workshop:
    """What a warm process keeps between trials: data, reference models, shared values."""

    def __init__(
        self,
        settings: Settings,
        lease: Lease = no_lease,
        placement: Placement | None = None,
        train_shared: Callable[[Order], None] = refuse_shared,
    ) -> None:
        """``train_shared(order)`` has several processes train a reference model (``train_workers`` of a problem)."""
        keep_freed_memory()
        load_plugins(settings.plugins)
        self.settings = settings
        self.placement = placement or Placement()
        open_log(settings.logs, self.placement.node)
        self.lease = lease
        self.store = ContentStore(settings.store)
        self.references = References(self.store, lease, train_shared)
        self.footprints = Footprints(settings.store)
        self.end_process: Callable[[dict[str, Any]], None] | None = None  # keeps a row and ends this process
        self.memory = OnceMemory()
        self.probed: dict[str, float | str] = {}  # what metrics found out about reference models
        self.drawn: dict[str, dict[str, Tensor]] = {}  # and what they drew of retrained models, by the model's key
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def problem(self, spec: ProblemSpec) -> Problem:
        """The problem on its device; the few most recent ones stay."""
        if spec.id not in self._problems:
            raw, checksum = self.data(spec.dataset)
            if checksum != spec.checksum:
                name = spec.dataset.label
                raise UserError(
                    f"dataset {name} must be the same on every node, got checksum {checksum} on {self.placement.node} "
                    f"and {spec.checksum} in the plan; copy the driver's --data folder there"
                )
            self._problems[spec.id] = make_problem(spec, raw, self.device(spec.device_type))
            while len(self._problems) > MEMORY_PROBLEMS:
                self._problems.popitem(last=False)
        self._problems.move_to_end(spec.id)
        return self._problems[spec.id]

    def data(self, dataset: Choice) -> tuple[RawData, str]:
        """The dataset and its checksum; a download happens once per node, the others wait for it."""
        arguments = (dataset, self.settings.data_root, self.settings.download)
        if not self.settings.download:
            return load_data(*arguments)
        with self.lease(f"download/{self.placement.node}/{dataset.name}"):
            return load_data(*arguments)

    def device(self, device_type: str) -> torch.device:
        """The device of this type that this process was given."""
        if device_type == "cuda" and not torch.cuda.is_available():
            raise WrongDevice(f"{self.placement.node} has no CUDA device")
        return torch.device(device_type)

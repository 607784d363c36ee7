"""The warm process around trials: settings of a run, where it runs, and what stays loaded from trial to trial."""

from __future__ import annotations

import platform
from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from raybench.content_store import ContentStore
from raybench.once import Lease, OnceMemory
from raybench.problem import Problem, load_data, make_problem
from raybench.references import References, no_lease
from raybench.registry import load_plugins
from raybench.spec import ProblemSpec


class WrongDevice(Exception):
    """This worker lacks the device type that the trial is pinned to; hand it to another one."""


@dataclass(frozen=True)
class Settings:
    """What every process of a run needs to know and what is not part of a trial's identity."""

    experiment: str
    store: str
    metrics: tuple[str, ...]
    artifacts: str | None = None  # folder for outputs and weights of finals
    data_root: str | None = None
    download: bool = False
    plugins: tuple[str, ...] = ()
    evaluate_seed: int = 0
    keep: tuple[str, ...] = ("outputs",)
    use_once: bool = True
    time_limit_s: float | None = None
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

    def __init__(self, settings: Settings, lease: Lease = no_lease, placement: Placement | None = None) -> None:
        load_plugins(settings.plugins)
        self.settings = settings
        self.placement = placement or Placement()
        self.lease = lease
        self.store = ContentStore(settings.store)
        self.references = References(self.store, lease)
        self.memory = OnceMemory()
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def problem(self, spec: ProblemSpec) -> Problem:
        """The problem on its device; the few most recent ones stay."""
        if spec.id not in self._problems:
            raw, checksum = load_data(spec.dataset, self.settings.data_root, self.settings.download)
            if checksum != spec.checksum:
                name = spec.dataset.label
                raise ValueError(f"dataset {name} has checksum {checksum} on this node, the plan has {spec.checksum}")
            self._problems[spec.id] = problem = make_problem(spec, raw, self.device(spec.device_type))
            problem.intact()  # fixes what it will be compared with
            while len(self._problems) > 6:
                self._problems.popitem(last=False)
        self._problems.move_to_end(spec.id)
        return self._problems[spec.id]

    def drop(self, spec: ProblemSpec) -> None:
        """Forget a problem whose data a trial has changed, so that the next trial loads it anew."""
        self._problems.pop(spec.id, None)

    def device(self, device_type: str) -> torch.device:
        """The device of this type that this process was given."""
        if device_type == "cuda" and not torch.cuda.is_available():
            raise WrongDevice(f"{self.placement.node} has no CUDA device")
        return torch.device(device_type)

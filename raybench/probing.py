"""Runs the metrics that probe models (``raybench.probe``) for one row: off the method's clock, on private copies."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raybench.errors import MetricUnavailable
from raybench.judging import make_judge
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.problem import Problem
from raybench.references import Reference
from raybench.registry import MetricEntry
from raybench.seeding import content_hash, derive_seed, seeded_globals, torch_generator
from raybench.training import make_recipe
from raybench.workshop import Workshop


@dataclass
class Prober:
    """The probes of one row. ``model`` is None where the result is a predictor without weights of its own.

    The workshop keeps, for the life of a process, what depends on the reference models alone (a value, or the reason
    why there is none). ``seconds``: wall seconds spent here, None while no probe was asked for. ``images``: what
    metrics drew of the row's model.
    """

    model: nn.Module | None
    original: Reference
    retrained: Reference
    problem: Problem
    shop: Workshop
    seconds: float | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
    _kept: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def value(self, entry: MetricEntry, context: MetricContext) -> float:
        """``entry`` on the row's model; raises ``MetricUnavailable`` with the reason."""
        if self.model is None:
            raise MetricUnavailable("probes the weights, and this method returns a predictor that is no module")
        if self.model is self.retrained.model:
            value = self.of_retrained(entry, context)
            self.images |= self.shop.drawn.get(self.retrained.key, {})
            return value
        model = self.model
        return self._timed(lambda: self._run(entry, context, model, self.images))

    def of_retrained(self, entry: MetricEntry, context: MetricContext) -> float:
        """``entry`` on the retrained model; raises ``MetricUnavailable`` with the reason."""
        name = f"{entry.name}/{entry.version}"
        drawn = self.shop.drawn.setdefault(self.retrained.key, {})
        return self._timed(lambda: self._remember(name, lambda: self._run(entry, context, self.retrained.model, drawn)))

    def _run(self, entry: MetricEntry, context: MetricContext, model: nn.Module, drawn: dict[str, Tensor]) -> float:
        spec, evaluate_seed = self.problem.spec, self.shop.settings.evaluate_seed

        def keep(name: str, compute: Callable[[], Tensor]) -> Tensor:
            key = (id(model), name)
            if key not in self._kept:
                self._kept[key] = compute()
            return self._kept[key]

        def show(name: str, pixels: Tensor) -> None:
            drawn[name] = pixels.detach().cpu().clone()

        probe = Probe(
            model=_private(model),
            original=_private(self.original.model),
            retrained=_private(self.retrained.model),
            splits=self.problem.splits,
            construct=self.problem.build,
            recipe=make_recipe(spec.recipe),
            seed=(spec.id, evaluate_seed),
            loss=self.problem.kind.loss(torch_generator("probe loss", spec.id, entry.name, device=self._device)),
            remember=self._remember,
            keep=keep,
            show=show,
            judge=lambda: make_judge(self.problem, self.shop),
        )
        try:
            # Dropout draws from the global state: the same for every model.
            with seeded_globals(derive_seed("probe", spec.id, entry.name, evaluate_seed)):
                return float(entry.fn(probe, context))
        except torch.OutOfMemoryError as error:
            raise MetricUnavailable(f"out of memory: {str(error).splitlines()[0]}") from error

    def _remember(self, name: str, compute: Callable[[], float]) -> float:
        seed, memory = self.shop.settings.evaluate_seed, self.shop.probed
        identity: list[Any] = [name, self.problem.spec.id, self.original.key, self.retrained.key, seed]
        key = content_hash(identity)
        if key not in memory:
            try:
                memory[key] = compute()
            except MetricUnavailable as error:
                memory[key] = str(error)
        found = memory[key]
        if isinstance(found, str):
            raise MetricUnavailable(found)
        return found

    @property
    def _device(self) -> torch.device:
        return self.problem.splits["train"].images.device

    def _timed(self, compute: Callable[[], float]) -> float:
        start = time.perf_counter()
        try:
            return compute()
        finally:
            self.seconds = (self.seconds or 0.0) + time.perf_counter() - start


def _private(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).requires_grad_(True).eval()
    except (RuntimeError, TypeError) as error:  # tensors that are no leaves, handles of the system
        raise MetricUnavailable(f"probes a copy of the model, which cannot be copied: {error}") from error

"""``UnlearningTask``: all that an unlearning method may see.

A method is a pure function ``fn(task, hp) -> model``. The test set and the retrained model are not in the task,
so nobody can peek; data that a method did not declare in ``needs`` raises when asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybench.data import Batch, Pixels, Split
from raybench.passes import Clock, PassCounter
from raybench.registry import FORGET, RETAIN, VALIDATION
from raybench.seeding import seeded_globals
from raybench.training import Loss, Recipe, cross_entropy

Tensors = Mapping[str, Tensor]
Compute = Callable[[torch.Generator], Tensor | Tensors]


class UndeclaredAccess(Exception):
    """A method asked for data or a resource that its registration does not declare."""


class Stop(Exception):
    """The spec's stopping rule is met: ``model`` is the unlearned model. Methods let it pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__("the stopping rule is met")
        self.model = model


class Once(Protocol):
    """Where ``UnlearningTask.once`` keeps values (see ``raybench.references``)."""

    def __call__(self, name: str, compute: Compute, inputs: Mapping[str, Any]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Facts:
    """What is known about a problem without looking at data."""

    dataset: str
    model: str
    num_classes: int
    input_shape: tuple[int, int, int]
    forget_classes: tuple[int, ...]
    scenario_kind: str  # CLASS or SAMPLE
    original_kind: str = "standard"
    model_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Reported:
    """What a method states itself: scalars become columns ``reported_<name>``, tensors and images files."""

    scalars: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    stop_reason: str | None = None


class UnlearningTask:
    """See the module docstring. Built by the harness (``raybench.trial``) and by tests.

    Attributes:
        model: private copy of the original model, in evaluation mode, all parameters trainable. Yours to change.
        forget_classes: the classes to forget; empty in sample scenarios.
        num_classes, input_shape: K and (channels, height, width).
        generator: the only source of randomness, on ``device``, seeded by the unlearn seed.
        recipe: how the original model was trained.
        forget_positions, retain_positions: int64 [|D_f|] and [|D_r|], where the samples of ``forget`` and ``retain``
            stood in the training split that the own training saw.
        artefacts: read-only tensors that the own training saved (codes, checkpoints); empty for standard originals.
        facts: names and shapes of the problem.
    """

    def __init__(
        self,
        *,
        original: nn.Module,
        build: Callable[[], nn.Module],
        splits: Mapping[str, Split],
        needs: frozenset[str],
        facts: Facts,
        pixels: Pixels,
        recipe: Recipe,
        generator: torch.Generator,
        clock: Clock,
        passes: PassCounter,
        once: Once,
        positions: Mapping[str, Tensor] | None = None,
        artefacts: Tensors | None = None,
        on_checkpoint: Callable[[nn.Module, int, Mapping[str, float]], None] | None = None,
        stop: Callable[[nn.Module], bool] | None = None,
        loss: Loss = cross_entropy,
        resources: Path | None = None,
    ) -> None:
        self.facts = facts
        self.forget_classes = facts.forget_classes
        self.num_classes = facts.num_classes
        self.input_shape = facts.input_shape
        self.device = generator.device
        self.generator = generator
        self.recipe = recipe
        self.artefacts: Tensors = MappingProxyType({k: v.clone() for k, v in (artefacts or {}).items()})
        where = {
            FORGET: torch.empty(0, dtype=torch.int64),
            RETAIN: torch.empty(0, dtype=torch.int64),
            **(positions or {}),
        }
        self.forget_positions, self.retain_positions = where[FORGET].clone(), where[RETAIN].clone()
        self.reported = Reported()
        self._passes = passes
        self._clock = clock
        self.model = passes.track(copy.deepcopy(original).requires_grad_(True).eval())
        self._build = build
        self._splits = {name: split.private(generator, clock.tick) for name, split in splits.items()}
        self._needs = needs
        self._pixels = pixels
        self._once = once
        self._on_checkpoint = on_checkpoint
        self._stop = stop
        self._loss = loss
        self._resources = resources

    @property
    def forget(self) -> Split:
        """D_f: the samples to forget, with the labels the original was trained on."""
        return self._declared(FORGET)

    @property
    def retain(self) -> Split:
        """D_r: the training samples that stay."""
        return self._declared(RETAIN)

    @property
    def validation(self) -> Split:
        """Held-out samples; in class scenarios of the remaining classes only."""
        return self._declared(VALIDATION)

    def new_model(self) -> nn.Module:
        """A freshly initialised network of the same architecture; its weights come from ``generator``."""
        seed = int(torch.randint(2**62, (1,), generator=self.generator, device=self.device).item())
        with seeded_globals(seed):
            return self.track(self._build().to(self.device))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The data loss per sample [n] (cross-entropy for classification); never build it yourself."""
        return self._loss(model, batch)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised images to [0, 1] pixels."""
        return self._pixels.denormalise(images)

    def from_pixels(self, images: Tensor) -> Tensor:
        """[0, 1] pixels to normalised images."""
        return self._pixels.normalise(images)

    def track(self, module: nn.Module) -> nn.Module:
        """Count the sample passes of a network that the method built itself (a generator, a new head)."""
        return self._passes.track(module)

    def once(self, name: str, compute: Compute, **inputs: Any) -> dict[str, Tensor]:
        """A value that does not depend on searched hyperparameters: a Fisher diagonal, inverted images.

        ``compute(generator)`` returns a tensor or a dict of tensors; a lone tensor comes back as
        ``{"value": tensor}``. ``inputs`` are what else it depends on. The result is shared between trials; its
        seconds and sample passes are charged to every trial that uses it. Always a copy.
        """
        return self._once(name, compute, inputs)

    def checkpoint(self, model: nn.Module, step: int, **scalars: float) -> None:
        """Offer the model of step ``step`` (from 1) to the harness, which may draw curves there (``scalars`` too).

        Curves are off the clock; what the spec's stopping rule has to look at is charged. May raise ``Stop`` (then
        ``model`` is the result) or ``TimeLimit``: let both pass.
        """
        self._clock.tick()
        modes = {module: module.training for module in model.modules()}
        if self._on_checkpoint is not None:
            with self._clock.paused(), self._passes.paused(), torch.random.fork_rng(devices=[]):
                self._on_checkpoint(model, step, scalars)
        met = self._stop is not None and self._stop(model)
        for module, training in modes.items():  # a frozen batch norm in a training model stays frozen
            module.training = training
        if met:
            raise Stop(model)

    def report(
        self,
        scalars: Mapping[str, float] | None = None,
        tensors: Tensors | None = None,
        images: Tensors | None = None,
        stop_reason: str | None = None,
    ) -> None:
        """Keep what the method itself states: numbers and ``stop_reason`` (one word) in the row, in ``artifacts/``
        tensors, and ``images`` (name -> pixels [n, c, h, w] in [0, 1], 1 or 3 channels) as PNG grids."""
        self.reported.scalars.update({k: float(v) for k, v in (scalars or {}).items()})
        for given, kept in ((tensors, self.reported.tensors), (images, self.reported.images)):
            kept.update({k: v.detach().cpu().clone() for k, v in (given or {}).items()})
        self.reported.stop_reason = stop_reason or self.reported.stop_reason

    def resource(self, name: str) -> Path:
        """A read-only file shipped with the method."""
        if self._resources is None or not (self._resources / name).is_file():
            raise UndeclaredAccess(f"no resource {name!r} is shipped with this method")
        return self._resources / name

    def _declared(self, name: str) -> Split:
        if name not in self._needs:
            raise UndeclaredAccess(f"the method asked for the {name} data, which its needs={{...}} do not declare")
        return self._splits[name]

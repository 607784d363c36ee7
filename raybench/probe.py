"""``Probe``: all that a metric may see that needs models and data, not only outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raybench.data import Pixels, Split
from raybench.errors import MetricUnavailable
from raybench.seeding import derive_seed, seeded_globals, torch_generator
from raybench.training import Loss, Recipe, cross_entropy


def compute_anew(name: str, compute: Callable[[], float]) -> float:
    """A ``remember`` that keeps nothing."""
    return compute()


def compute_again(name: str, compute: Callable[[], Tensor]) -> Tensor:
    """A ``keep`` that keeps nothing."""
    return compute()


@dataclass(frozen=True)
class Judge:
    """A classifier of the problem's dataset that looks at the images that a model makes. ``accuracy``: on the whole
    test set. Takes [0, 1] pixels [n, C, H, W]."""

    model: nn.Module
    pixels: Pixels
    accuracy: float

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """What it calls each image, int64 [n]."""
        logits: Tensor = self.model(self.pixels.normalise(images))
        return logits.argmax(dim=1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The vectors that its last layer reads, float32 [n, d]."""
        found: Tensor = self.model.features(self.pixels.normalise(images))  # type: ignore[operator]
        return found


def no_judge() -> Judge:
    """Where there is none."""
    raise MetricUnavailable("needs a classifier that judges images")


@dataclass(frozen=True)
class Probe:
    """What ``fn(probe, context)`` of a metric registered with ``probe=True`` gets; made anew for each metric and model.

    Attributes:
        model: the model to look at. Like ``original`` and ``retrained`` a private copy on the device, in evaluation
            mode, every parameter trainable: train it, break it.
        original, retrained: the reference models of the row (``original`` is the one that the method started from).
        splits: ``train forget retain validation test`` and in class scenarios ``validation_forgotten
            test_forgotten``; their tensors are shared, so never write to them. ``bound`` one to a generator to draw.
        construct: makes a network of the problem's architecture; use ``build``.
        recipe: how original and retrained model were trained.
        seed: what every random number here depends on besides the words given to ``generator`` and ``build``: problem
            and evaluate seed, but not the model, so that all models of a problem meet the same batches.
        loss: the data loss per sample [n].
        remember: ``remember(name, compute)`` keeps a number that depends on the problem and its reference models
            alone, never on ``model``; computed once per process.
        keep: ``keep(name, compute)`` keeps a tensor that depends on ``model`` for the other metrics of the same row.
        show: ``show(name, pixels)`` hands over images [n, c, h, w] in [0, 1], which become a PNG of the row.
        judge: gives a classifier of the same dataset; trained (and kept in the store) when first asked for.
    """

    model: nn.Module
    original: nn.Module
    retrained: nn.Module
    splits: Mapping[str, Split]
    construct: Callable[[], nn.Module]
    recipe: Recipe
    seed: tuple[Any, ...] = ()
    loss: Loss = cross_entropy
    remember: Callable[[str, Callable[[], float]], float] = field(default=compute_anew)
    keep: Callable[[str, Callable[[], Tensor]], Tensor] = field(default=compute_again)
    show: Callable[[str, Tensor], None] = field(default=lambda name, pixels: None)
    judge: Callable[[], Judge] = field(default=no_judge)

    @property
    def device(self) -> torch.device:
        """Where models and splits live."""
        return self.splits["forget"].images.device

    def generator(self, *words: Any) -> torch.Generator:
        """A new generator on the device: the same words give the same draws, for every model of the problem."""
        return torch_generator("probe", *self.seed, *words, device=self.device)

    def build(self, *words: Any) -> nn.Module:
        """A freshly initialised network on the device, in evaluation mode; its weights depend on the words."""
        with seeded_globals(derive_seed("probe", "build", *self.seed, *words)):
            return self.construct().to(self.device).eval()

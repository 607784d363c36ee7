"""Relearning: teach a model again what it was to forget, and look how fast it goes. For metrics, not for methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.errors import MetricUnavailable
from raybench.mechanisms.stepping import Stepper
from raybench.probe import Probe

EVALUATION_BATCH = 1024


class Diverged(MetricUnavailable):
    """Relearning came to a loss that is not finite."""


def drawn(split: Split, size: int, generator: torch.Generator) -> Batch:
    """``size`` samples of ``split`` drawn with replacement: normalised images [size, C, H, W], labels [size]."""
    if not len(split):
        raise MetricUnavailable("relearning draws from a split that is empty")
    return split.subset(torch.randint(len(split), (size,), generator=generator, device=generator.device)).tensors()


def relearning(
    probe: Probe,
    model: nn.Module,
    draw: Callable[[], Batch],
    *,
    lr: float,
    momentum: float = 0.0,
    pull: float = 0.0,
    optimiser: Literal["sgd", "adam"] = "sgd",
) -> Iterator[int]:
    """Train ``model`` in place, one step on ``draw()`` for each item, which is the number of steps so far.

    ``pull`` adds the gradient of pull / 2 |w - w_start|^2. Precision and memory format are the problem's; images are
    not augmented. Endless: the caller stops. ``MetricUnavailable`` where nothing can be trained, ``Diverged`` where
    the loss leaves the finite numbers.
    """
    recipe = dataclasses.replace(probe.recipe, optimiser=optimiser, lr=lr, momentum=momentum, weight_decay=0.0)
    if not any(p.requires_grad for p in model.parameters()):
        raise MetricUnavailable("the model has no parameters that could relearn")
    stepper = Stepper(model, recipe)
    start = [p.detach().clone() for p in stepper.parameters]

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        losses = probe.loss(net, batch)
        if not losses.requires_grad:
            raise MetricUnavailable("the model's outputs have no gradient, so it cannot relearn")
        if not bool(torch.isfinite(losses).all()):
            raise Diverged("relearning met a loss that is not finite")
        return losses

    def pull_back() -> None:
        for p, origin in zip(stepper.parameters, start, strict=True):
            if p.grad is not None:
                p.grad.add_(p.detach() - origin, alpha=pull)

    step = 0
    while True:
        model.train()
        stepper.step(draw(), loss, lr=lr, after_backward=pull_back)
        step += 1
        yield step


@torch.no_grad()
def mean_loss(probe: Probe, model: nn.Module, split: Split) -> float:
    """Mean data loss of ``model`` (put in evaluation mode) over ``split``, weighted by samples."""
    model.eval()
    total = sum(float(probe.loss(model, batch).double().sum()) for batch in split.batches(EVALUATION_BATCH))
    return total / len(split) if len(split) else math.nan


@torch.no_grad()
def accuracy_on(model: nn.Module, split: Split) -> float:
    """Share of ``split`` that ``model`` (put in evaluation mode) gets right."""
    model.eval()
    right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in split.batches(EVALUATION_BATCH))
    return right / len(split) if len(split) else math.nan

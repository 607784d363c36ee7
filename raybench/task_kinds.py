"""What models are trained to do: for each kind of task the data loss, and what is kept of a model on a split.

A model's registration names its kind (``task``); methods and metrics say which kinds they serve (``tasks``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybench.data import Split
from raybench.diffusion import STEPS, denoising_losses, drawn_losses
from raybench.outputs import SplitOutputs
from raybench.registry import CLASSIFICATION, DENOISING, MODELS
from raybench.seeding import torch_generator
from raybench.training import Loss, cross_entropy

Predictor = Callable[..., Tensor]
EVALUATED_STEPS = tuple(STEPS * (2 * k + 1) // 8 for k in range(4))  # the middles of the quarters: 125, 375, 625, 875


@dataclass(frozen=True)
class TaskKind:
    """``loss(generator)`` is the data loss per sample, drawing from ``generator`` what it has to draw;
    ``outputs(predictor, split, batch_size)`` is what metrics see of a model on a split, the same at each call."""

    name: str
    loss: Callable[[torch.Generator], Loss]
    outputs: Callable[[Predictor, Split, int], SplitOutputs]


def _logits(predictor: Predictor, split: Split, batch_size: int) -> SplitOutputs:
    """Logits of every sample, one pass."""
    logits = [predictor(images).float() for images, _ in split.batches(batch_size)]
    return SplitOutputs(torch.cat(logits).cpu() if logits else torch.empty(0, 0), split.targets.cpu())


def _fixed_losses(predictor: Predictor, split: Split, batch_size: int) -> SplitOutputs:
    """Denoising loss of every sample, the mean over ``EVALUATED_STEPS`` at noise that is the same for every model:
    four passes."""
    found = []
    for number, (images, _) in enumerate(split.batches(batch_size)):
        generator = torch_generator("denoising", number, device=images.device)
        total = torch.zeros(len(images), device=images.device)
        for step in EVALUATED_STEPS:
            noise = torch.randn(images.shape, generator=generator, device=images.device)
            t = torch.full((len(images),), step, device=images.device)
            total += denoising_losses(predictor, images, t, noise).float()
        found.append(total / len(EVALUATED_STEPS))
    losses = torch.cat(found).cpu() if found else torch.empty(0)
    return SplitOutputs(torch.empty(len(losses), 0), split.targets.cpu(), losses)


def _drawing(generator: torch.Generator) -> Loss:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return drawn_losses(model, batch[0], generator)

    return loss


CLASSIFYING = TaskKind(CLASSIFICATION, lambda generator: cross_entropy, _logits)
TASK_KINDS = {kind.name: kind for kind in (CLASSIFYING, TaskKind(DENOISING, _drawing, _fixed_losses))}


def kind_of_model(name: str) -> TaskKind:
    """What the registered model ``name`` is trained to do."""
    return TASK_KINDS[MODELS[name].task]

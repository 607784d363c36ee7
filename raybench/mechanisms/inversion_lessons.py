"""A student's lessons from images that are inverted from its teacher (DeepInversion, arXiv:1912.08795).

The images are made beforehand, for labels alone, or in competition: each batch seeks what the student of the moment
disagrees with the teacher on (equations 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from raybench.mechanisms.distillation import js_divergence, kl_to_target, retain_softmax
from raybench.mechanisms.inversion import Inversion, frozen, invert, pixel_bounds
from raybench.mechanisms.synthetic import fit_images
from raybench.task import UnlearningTask

COMPETITION_TEMPERATURE = 3.0


class Lessons(Protocol):
    """The settings; see ``raybench.methods.deep_inversion.DeepInversionHparams``."""

    @property
    def student(self) -> Literal["hard", "distilled"]: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip_value(self) -> float: ...
    @property
    def inversion_batch(self) -> int: ...
    @property
    def clip(self) -> bool: ...
    @property
    def adaptive(self) -> float: ...
    def inversion(self) -> Inversion: ...


def make_images(task: UnlearningTask, hp: Lessons, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images [n, *input_shape] that the original takes for ``labels`` [n], ``inversion_batch`` of them at a time."""
    bounds = pixel_bounds(task) if hp.clip else None
    parts = labels.split(hp.inversion_batch)
    return torch.cat([invert(task.model, p, task.input_shape, generator, hp.inversion(), bounds) for p in parts])


def compete(task: UnlearningTask, hp: Lessons, student: nn.Module, labels: Tensor) -> Tensor:
    """As ``make_images``, batches on which the student of the moment disagrees with the teacher.

    Before every batch but the first ``student`` learns one epoch from all images so far; it is changed in place.
    """
    bounds = pixel_bounds(task) if hp.clip else None

    def agreement(images: Tensor, logits: Tensor) -> Tensor:
        return hp.adaptive * (1.0 - js_divergence(logits, student(images), COMPETITION_TEMPERATURE).mean())

    made = torch.empty(0, *task.input_shape, device=task.device)
    for part in labels.split(hp.inversion_batch):
        if len(made):
            learn(task, hp, student, made, labels[: len(made)], epochs=1)
        with frozen(student):
            more = invert(task.model, part, task.input_shape, task.generator, hp.inversion(), bounds, penalty=agreement)
        made = torch.cat([made, more])
    return made


def learn(
    task: UnlearningTask,
    hp: Lessons,
    student: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train ``student`` in place on ``images`` [n, c, h, w] by Adam: ``hard``, to give their ``labels`` [n], or
    ``distilled``, the original's softmax over the remaining classes. Cost: epochs x n sample passes (and n forward)."""
    if hp.student == "hard":

        def loss(shown: Tensor, rows: Tensor) -> Tensor:
            return task.loss(student, (shown, labels[rows]))
    else:
        with torch.no_grad():
            logits = torch.cat([task.model(part) for part in images.split(hp.inversion_batch)])
        target = retain_softmax(logits, task.forget_classes)

        def loss(shown: Tensor, rows: Tensor) -> Tensor:
            return kl_to_target(target[rows], student(shown))

    fit_images(
        student,
        images,
        loss,
        task.generator,
        epochs=epochs,
        batch_size=hp.batch_size,
        lr=hp.lr,
        weight_decay=hp.weight_decay,
        clip_value=hp.clip_value,
        after_epoch=after_epoch,
    )

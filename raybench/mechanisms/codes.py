"""Codes: one made-up input per class, mixed into the training, whose gradients later stand for the class's data.

Yamashita et al. 2024 (arXiv:2306.05670), Algorithms 1 and 2; gradients at codes also serve Shibata et al. 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Batch, Pixels, Split
from raybench.mechanisms.fisher_step import mean_squares
from raybench.task import UnlearningTask
from raybench.training import BatchTransform, Loss, TrainingJob


def replaced_by_codes(job: TrainingJob, codes: Tensor, share: float) -> BatchTransform:
    """A transform of batches that puts ``codes`` [K, C, H, W] of the samples' classes in the place of a random
    ``share`` of the images, drawn from the generator of ``job``; labels stay."""

    def mix(images: Tensor, labels: Tensor) -> Tensor:
        replace = torch.rand(len(labels), generator=job.generator, device=job.device) < share
        return torch.where(replace[:, None, None, None], codes[labels], images)

    return mix


def mean_code_squares(model: nn.Module, loss: Loss, codes: Tensor, classes: Sequence[int]) -> dict[str, Tensor]:
    """The mean over ``classes`` of the squared gradients at their codes, per parameter (``mean_squares``).

    One backward pass per class, batches of one, in the mode that the model is in.
    """

    def gradient(label: int) -> dict[str, Tensor]:
        batch = (codes[label : label + 1], torch.tensor([label], device=codes.device))
        named = dict(model.named_parameters())
        return dict(zip(named, torch.autograd.grad(loss(model, batch).sum(), list(named.values())), strict=True))

    return mean_squares(gradient(label) for label in classes)


def code_fishers(task: UnlearningTask, codes: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """f_F and f_R of the original model: the mean squares at the codes of the classes that go, and of the others.

    A ``once`` value. Cost: K sample passes.
    """

    def compute(_: torch.Generator) -> dict[str, Tensor]:
        kept = [label for label in range(task.num_classes) if label not in task.forget_classes]
        forget = mean_code_squares(task.model, task.loss, codes, task.forget_classes)
        retain = mean_code_squares(task.model, task.loss, codes, kept)
        return {f"forget/{n}": v for n, v in forget.items()} | {f"retain/{n}": v for n, v in retain.items()}

    both = task.once("code_gradients", compute)
    names = [name for name, _ in task.model.named_parameters()]
    return {name: both[f"forget/{name}"] for name in names}, {name: both[f"retain/{name}"] for name in names}


def cosine_importance(
    model: nn.Module, codes: Tensor, kept: Sequence[int], gone: Sequence[int], w_rev: float, scale: float
) -> dict[str, Tensor]:
    """(F+ + w_rev F-)_+ per parameter from the classes ``kept`` and ``gone``, in the mode that the model is in.

    Of the cross-entropy on cosines: on the logits without their ``scale`` and without margin. Cost: K sample passes.
    """

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch[0]) / scale, batch[1], reduction="none")

    positive, negative = (mean_code_squares(model, loss, codes, classes) for classes in (kept, gone))
    return {name: (positive[name] + w_rev * negative[name]).clamp(min=0.0) for name in positive}


def split_of_codes(codes: Tensor, classes: Sequence[int], generator: torch.Generator) -> Split:
    """The codes of ``classes`` as samples, shown as they are: they are normalised already."""
    as_they_are = Pixels(torch.zeros(1, device=codes.device), torch.ones(1, device=codes.device))
    labels, index = (torch.tensor(list(c), device=codes.device) for c in (range(len(codes)), classes))
    return Split(codes, labels, index, as_they_are, generator=generator)

"""Traces of a training: for its last epochs, the mean gradient per sample and the weights at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raybench.task import UnlearningTask
from raybench.training import TrainingJob

KINDS = ("gradients", "weights")


class EpochTraces:
    """Records while ``job.fit(model, before_step=self.before_step, after_epoch=self.after_epoch)`` runs.

    ``tensors``: ``<label>.gradients.<parameter>`` (sum over the epoch's batches of the batch's mean gradient times its
    share of the samples) and ``<label>.weights.<parameter>``; ``labels`` name the last epochs in their order.
    """

    def __init__(self, job: TrainingJob, model: nn.Module, labels: Sequence[str]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._parameters = dict(model.named_parameters())
        self._labels = labels
        self._first = job.recipe.epochs - len(labels)
        if self._first < 0:
            raise ValueError(
                f"the last {len(labels)} epochs are recorded, got a recipe of {job.recipe.epochs}; add epochs"
            )
        self._n, self._batch = len(job.train), job.recipe.batch_size
        self._steps = math.ceil(self._n / self._batch)
        self._done = 0

    def before_step(self) -> None:
        """Add the gradients of one batch."""
        epoch, position = divmod(self._done, self._steps)
        self._done += 1
        if epoch < self._first:
            return
        share = min(self._batch, self._n - position * self._batch) / self._n
        for name, p in self._parameters.items():
            key = f"{self._labels[epoch - self._first]}.gradients.{name}"
            sums = self.tensors.setdefault(key, torch.zeros_like(p, requires_grad=False))
            if p.grad is not None:
                sums += share * p.grad

    def after_epoch(self, epoch: int) -> None:
        """Keep the weights after epoch ``epoch`` (from 1)."""
        if epoch > self._first:
            label = self._labels[epoch - 1 - self._first]
            kept = {f"{label}.weights.{name}": p.detach().clone() for name, p in self._parameters.items()}
            self.tensors.update(kept)


def read_traces(task: UnlearningTask, labels: Sequence[str]) -> list[dict[str, dict[str, Tensor]]]:
    """What ``EpochTraces`` left in the artefacts of the original: per label, kind -> parameter name -> tensor.

    ``ValueError`` where its training left none.
    """
    names = [name for name, _ in task.model.named_parameters()]
    keys = [f"{label}.{kind}.{name}" for label in labels for kind in KINDS for name in names]
    missing = [key for key in keys if key not in task.artefacts]
    if missing:
        raise ValueError(f"traces must have {missing[0]} of the method's own training, got none; train the original so")
    return [
        {kind: {name: task.artefacts[f"{label}.{kind}.{name}"] for name in names} for kind in KINDS} for label in labels
    ]

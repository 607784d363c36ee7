"""Training that stays near its start: weight decay toward the initial weights, which are kept as artefacts."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob


def train_toward_start(job: TrainingJob, decay: float) -> Trained:
    """The job's recipe with the penalty decay / 2 |w - w_init|^2 in place of its weight decay.

    Artefacts: ``init/<parameter>``, the initial weights, and ``weight_decay``, a number.
    """
    model = job.new_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def pull() -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad.add_(p.detach() - start[name], alpha=decay)

    job.fit(model, dataclasses.replace(job.recipe, weight_decay=0.0), before_step=pull)
    kept = {f"init/{name}": value for name, value in start.items()}
    return Trained(model, kept | {"weight_decay": torch.tensor(decay)})


def initial_weights(task: UnlearningTask, method: str) -> dict[str, Tensor]:
    """Parameter name -> initial weights, as such a training left them; ``ValueError`` where they do not fit."""
    kept = {}
    for name, p in task.model.named_parameters():
        value = task.artefacts.get(f"init/{name}")
        if value is None or value.shape != p.shape:
            raise ValueError(
                f"{method} must get the initial weights {name} of shape {tuple(p.shape)} from the training of the "
                "original, got none that fit; train the original of this dataset and model with its own training"
            )
        kept[name] = value.to(task.device)
    return kept

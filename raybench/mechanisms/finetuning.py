"""The loop that most methods share: train a network on a split by the method's own settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from raybench.data import Batches
from raybench.task import UnlearningTask
from raybench.training import Loss, fit, own_recipe


def train(
    task: UnlearningTask,
    model: nn.Module,
    split: Batches,
    hp: Any,
    *,
    loss: Loss | None = None,
    changes: dict[str, Any] | None = None,
    offset: int = 0,
    **options: Any,
) -> nn.Module:
    """Train ``model`` in place on ``split`` with the fields of ``hp`` that a recipe has too (see ``own_recipe``), then
    ``changes``; returns ``model``, in evaluation mode.

    ``loss`` gives per-sample losses [n] and is the task's by default. After each epoch the model is offered to the
    harness as step ``offset`` + epoch (from 1). ``options`` go to ``raybench.training.fit``.
    Cost: a sample pass per sample of each epoch.
    """
    fit(
        model,
        split,
        own_recipe(task.recipe, hp, **(changes or {})),
        loss=loss or task.loss,
        after_epoch=lambda epoch: task.checkpoint(model, offset + epoch),
        **options,
    )
    return model

"""Train only the end of a network, from some stage to the head: the half that CF-k and EU-k share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.finetuning import train
from raybench.task import UnlearningTask


def split_stages(model: nn.Module, k: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """(what stays, what trains): the stages but the last ``k``, and the last ``k`` with the neck and the head.

    ``k`` = 0 leaves neck and head; from the number of stages on nothing stays, and the whole model trains.
    ``ValueError`` for a negative ``k``.
    """
    if k < 0:
        raise ValueError(f"k counts stages from the head and must not be negative, got {k}")
    stages: list[nn.Module] = model.stages()  # type: ignore[operator]
    if k >= len(stages):
        return [], [model]
    kept = len(stages) - k
    return stages[:kept], [*stages[kept:], model.neck, model.head]  # type: ignore[list-item]


def train_last_stages(task: UnlearningTask, model: nn.Module, hp: Any, **changes: Any) -> nn.Module:
    """Train the last ``hp.k`` stages, neck and head of ``model`` in place on D_r; the rest stays to the bit.

    What stays has no gradients (so they are not paid for) and is in evaluation mode, so its buffers stay too; it is a
    fixed function. ``hp`` has, besides the fields of a recipe, ``k``, ``pull`` (strength of an L2 pull of what trains
    to where it starts) and ``eval_mode`` (all in evaluation mode); ``changes`` are to the recipe.
    Cost: epochs x |D_r| sample passes, of whose backward halves only the part above the stages that stay is made.
    """
    frozen, trained = split_stages(model, hp.k)
    free = {id(p) for module in trained for p in module.parameters()}
    start = [(p, p.detach().clone()) for p in model.parameters() if id(p) in free] if hp.pull else []

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        for stage in frozen:  # the loop puts the whole network into training mode
            stage.eval()
        losses = task.loss(network, batch)
        for p, was in start:
            losses = losses + hp.pull / 2.0 * (p - was).square().sum()
        return losses

    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in free)
        return train(task, model, task.retain, hp, loss=loss, changes=changes, train_mode=not hp.eval_mode)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)

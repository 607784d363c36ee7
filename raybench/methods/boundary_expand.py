"""Boundary Expand: a spare class takes the forget samples in, and is cut off again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.finetuning import train
from raybench.registry import FORGET, METHODS
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class BoundaryExpandHparams:
    """Defaults: the authors' code (AllCNN on CIFAR-10), SGD at 1e-5 for 10 epochs."""

    lr: Annotated[float, scientific(FloatDistribution(1e-6, 1e-2, log=True))] = 1e-5
    """Learning rate. Small networks and forget sets need 1e-4 to 1e-3; above, the retained classes go too."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 20))] = 10
    """Passes over D_f."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 penalty."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode. The code trains in train mode, in which batches of D_f alone move
    the statistics of batch norm towards D_f."""


class _Widened(nn.Module):
    """A classifier with one more class, whose row is kept beside the head: pruning it is to drop this wrapper."""

    def __init__(self, model: nn.Module, spare: nn.Linear) -> None:
        super().__init__()
        self.model, self.spare = model, spare

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.features(x)  # type: ignore[operator]
        return torch.cat([self.model.head(features), self.spare(features)], dim=1)  # type: ignore[operator]


@METHODS.register(
    "boundary_expand",
    hparams=BoundaryExpandHparams,
    label="Boundary Expand",
    paper="arXiv:2303.11570",
    needs={FORGET},
    tiny={"epochs": 2, "lr": 1e-3},
    complexity="E N_f",
    batch_norm="move unless eval_mode",
)
def boundary_expand(task: UnlearningTask, hp: BoundaryExpandHparams) -> nn.Module:
    """Minimise the data loss on D_f labelled as class K + 1 of a widened head, then prune it (Chen et al. 2023,
    section "Boundary Expand").

    The widened head [W; w] is the original's K rows and a new one, drawn as in the code (Xavier normal for K + 1 rows,
    bias zero). All parameters train; what comes back has K outputs and the keys of the original. Made for whole
    classes; SalUn's tables run it on random samples too. Batch norm trains, so its buffers move unless ``eval_mode``.
    Cost: epochs x |D_f| sample passes.

    Deviations:
        - the row is pruned, as in the authors' code; SalUn's port evaluates with the spare class in place, which makes
          the accuracy on D_f fall for nothing.
        - augmentation is off, as in the authors' code.
    """
    spare = _spare_row(task)
    wide = _Widened(task.model, spare)
    labels = torch.full_like(task.forget.targets, task.num_classes)
    return train(
        task,
        task.model,
        task.forget.relabelled(labels),
        hp,
        loss=lambda _, batch: task.loss(wide, batch),
        changes={"augment": False},
        parameters=[*task.model.parameters(), *spare.parameters()],
        train_mode=not hp.eval_mode,
    )


def _spare_row(task: UnlearningTask) -> nn.Linear:
    """A linear layer [n, d] -> [n, 1] like one more row of the head."""
    head = task.model.head
    assert isinstance(head, nn.Linear)
    like = head.weight
    spare = nn.Linear(head.in_features, 1, bias=head.bias is not None, device="meta").to_empty(device=like.device)
    spread = math.sqrt(2.0 / (head.in_features + head.out_features + 1))
    with torch.no_grad():
        spare.weight.copy_(spread * torch.randn(1, head.in_features, generator=task.generator, device=like.device))
        if spare.bias is not None:
            spare.bias.zero_()
    task.track(spare)
    return spare.to(like.dtype)

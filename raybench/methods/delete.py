"""DELETE: distil from the original model with the true class taken out, on the forget set alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.distillation import kl_to_target
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.stepping import frozen_copy
from raybench.registry import FORGET, METHODS
from raybench.space import above, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class DeleteHparams:
    """Defaults: the paper's (SGD, 20 epochs, batches of 128); its learning rate is searched, the default is ours."""

    lr: Annotated[float, scientific(FloatDistribution(1e-6, 1e-1, log=True))] = 1e-3
    """Learning rate: how far to go. The paper searches 1e-7 to 1e-2."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 20))] = 20
    """Passes over D_f."""
    batch_size: int = 128
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    clip_norm: float | None = None
    """Largest gradient norm, or no clipping; the first gradients of a confident model are large."""
    eval_mode: bool = True
    """Keep batch norm and dropout in evaluation mode. In train mode batch norm would move its statistics to those of
    D_f, which damages the retained classes whatever the gradient does."""

    def __post_init__(self) -> None:
        above(self, 0, "clip_norm")


@METHODS.register(
    "delete",
    hparams=DeleteHparams,
    label="DELETE",
    paper="arXiv:2503.23751",
    needs={FORGET},
    tiny={"epochs": 2},
    complexity="E N_f",
    batch_norm="read unless not eval_mode",
)
def delete(task: UnlearningTask, hp: DeleteHparams) -> nn.Module:
    """Minimise KL(t || p) on D_f, with t = softmax of the original's logits without the true class (Zhou et al. 2025).

    Zhou et al., CVPR 2025, arXiv:2503.23751: the mask forgets, the distillation of what remains of the original's
    answer keeps the rest, without any retain data. At the start the divergence is -log(1 - p_y), several nats for
    a confident model. Batch norm stays in evaluation mode, its buffers are read only (``eval_mode: false`` lets them
    move). Cost: epochs x |D_f| sample passes, as many forward through the original.

    Deviations:
        - evaluation mode by default, as D_f alone would move the statistics of batch norm.
        - the original's answers are computed anew in every step (they could be stored), because augmentation is the
          recipe's and changes the images.
    """
    teacher = frozen_copy(task.model)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            target = answers_without(teacher(images), labels)
        return kl_to_target(target, network(images))

    return train(task, task.model, task.forget, hp, loss=loss, train_mode=not hp.eval_mode)


def answers_without(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax of ``logits`` [n, K] over all classes but ``labels`` [n]: probabilities [n, K], exactly 0 there."""
    return logits.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)

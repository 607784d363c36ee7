"""NegGrad+: descend on the retain set and climb on the forget set in the same step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.mixing import endless, with_others
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class NegGradPlusHparams:
    """Defaults: the SCRUB paper's code for small data (a = 0.95, SGD at 0.01 without momentum, 10 epochs)."""

    forget_weight: Annotated[float, scientific(FloatDistribution(1e-5, 1e-1, log=True))] = 0.05
    """1 - a: weight of the climb on D_f; the descent on D_r has a. Searched as 1 - a on a log scale because the
    useful values of a crowd near 1 (the paper's large-scale runs use a = 0.9999)."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-1, log=True))] = 0.01
    """Learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over D_r; each sees D_f about |D_r| / |D_f| times."""
    batch_size: int = 64
    """Samples a step from D_r, and as many from D_f."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 penalty."""
    pull: float = 0.0
    """Strength of an L2 pull to the original weights inside the retain term, which one of the two codes adds."""
    clip_norm: float | None = None
    """Largest gradient norm, or no clipping."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode, as the code with the pull does. In train mode the batch
    statistics of D_r and D_f, which go through the model one after the other, both move the buffers."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.forget_weight <= 1.0:
            raise ValueError(f"forget_weight must be in [0, 1], got {self.forget_weight}")


@METHODS.register(
    "neggrad_plus",
    hparams=NegGradPlusHparams,
    label="NegGrad+",
    paper="arXiv:2302.09880",
    needs={FORGET, RETAIN},
    tiny={"epochs": 1},
    complexity="2 E N_r",
    batch_norm="move unless eval_mode",
)
def neggrad_plus(task: UnlearningTask, hp: NegGradPlusHparams) -> nn.Module:
    """Minimise a * loss(D_r) - (1 - a) * loss(D_f), by batches (Kurmanji et al. 2023, section 4 and its code).

    An epoch is a pass over D_r beside which D_f is cycled. The paper's code holds two methods of this name; the
    plain one (train mode, no pull) is the default, ``eval_mode`` and ``pull`` give the other.
    Batch norm trains by default, so its buffers move. Cost: 2 x epochs x |D_r| sample passes.

    Deviations:
        - augmentation is the recipe's, so that all methods see the same images.
    """
    model = task.model
    keep = 1.0 - hp.forget_weight
    forgotten = endless(task.forget, hp.batch_size, augment=task.recipe.augment)
    both = with_others(task.loss, forgotten, keep, -hp.forget_weight)
    start = [p.detach().clone() for p in model.parameters()] if hp.pull else []

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        losses = both(network, batch)
        for p, was in zip(network.parameters() if start else (), start, strict=True):
            losses = losses + keep * hp.pull / 2.0 * (p - was).square().sum()
        return losses

    return train(task, model, task.retain, hp, loss=loss, train_mode=not hp.eval_mode)

"""Gradient ascent (GA, NegGrad): climb the loss of the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.finetuning import train
from raybench.registry import CLASSIFICATION, DENOISING, FORGET, METHODS
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class GradientAscentHparams:
    """Defaults: the l1-sparse paper's code (arXiv:2304.04934), SGD at 1e-4 for 5 epochs."""

    lr: Annotated[float, scientific(FloatDistribution(1e-6, 1e-1, log=True))] = 1e-4
    """Learning rate: how hard to climb. The loss has no upper bound; from about 1e-3 on CIFAR networks, 1e-2 on
    small ones, everything is forgotten within a few steps."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 5
    """Passes over D_f."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty; it goes on pulling to zero while the data loss is climbed."""
    clip_norm: float | None = None
    """Largest gradient norm (SFR-on's tuned run uses 0.1), or no clipping."""
    eval_mode: bool = True
    """Keep batch norm and dropout in evaluation mode. In train mode batch norm would move its statistics to those
    of D_f, which damages the retained classes whatever the gradient does; the first code trained in train mode."""


@METHODS.register(
    "gradient_ascent",
    hparams=GradientAscentHparams,
    label="GA",
    paper="arXiv:2109.13398",
    needs={FORGET},
    tasks={CLASSIFICATION, DENOISING},
    tiny={"epochs": 2},
    complexity="E N_f",
    batch_norm="read unless eval_mode: false",
)
def gradient_ascent(task: UnlearningTask, hp: GradientAscentHparams) -> nn.Module:
    """w <- w + lr * gradient of the mean loss on D_f, by batches (Thudi et al. 2022; NegGrad of arXiv:1911.04933).

    The loss may grow without bound; a model that is no longer finite is the harness's status ``diverged``.
    Batch norm stays in evaluation mode, its buffers are read only (``eval_mode: false`` lets them move).
    Cost: epochs x |D_f| sample passes.

    Deviations:
        - evaluation mode by default; the first code trained in train mode, which moves the statistics of batch norm
          to those of D_f, so that two effects are mixed.
        - learning rate and epochs are those of the l1-sparse paper's code (arXiv:2304.04934), searched over a range.
    """
    return train(
        task, task.model, task.forget, hp, objective=lambda losses: -losses.mean(), train_mode=not hp.eval_mode
    )

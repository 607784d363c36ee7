"""Fine-tune on the retain set: nothing aims at D_f, forgetting is what drift produces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.finetuning import train
from raybench.registry import CLASSIFICATION, DENOISING, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class FinetuneHparams:
    """Defaults: the l1-sparse paper's code (arXiv:2304.04934), 10 epochs at 0.01."""

    lr: Annotated[float, scientific(FloatDistribution(1e-4, 1e-1, log=True))] = 0.01
    """Learning rate; it matters more than the epochs: 0.1 forgets much, 0.001 next to nothing."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over D_r."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    schedule: Literal["none", "cosine"] = "none"
    """Learning rate over the run; the NeurIPS 2023 challenge's starting kit uses a cosine."""


@METHODS.register(
    "finetune",
    hparams=FinetuneHparams,
    label="Fine-tune",
    paper="arXiv:1911.04933",
    needs={RETAIN},
    tasks={CLASSIFICATION, DENOISING},
    tiny={"epochs": 2},
    complexity="E N_r",
    batch_norm="move",
)
def finetune(task: UnlearningTask, hp: FinetuneHparams) -> nn.Module:
    """Minimise the data loss on D_r from the original weights (the baseline of Golatkar et al. 2020, section 6).

    Augmentation, precision and memory format are the recipe's. Batch norm trains, so its buffers move.
    Cost: epochs x |D_r| sample passes.

    Deviations:
        - the defaults are those of the l1-sparse paper's code (SGD, 0.01, 10 epochs, constant rate); published
          settings of this baseline reach from 0.01 for 10 epochs to 0.1 with a cosine for 5.
    """
    return train(task, task.model, task.retain, hp)

"""CT (convolution transpose): transpose every convolution kernel in the image plane, fine-tune on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.finetuning import train
from raybench.registry import METHODS, RETAIN
from raybench.space import nuisance
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class CtHparams:
    """Defaults: the entry of the NeurIPS 2023 challenge as Deep Unlearn ports it."""

    lr: Annotated[float, nuisance(FloatDistribution(1e-5, 1e-1, log=True))] = 1e-3
    """Peak learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 3
    """Passes over D_r."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    schedule: Literal["cosine", "none"] = "cosine"
    """Learning rate over the run."""


@METHODS.register(
    "ct",
    hparams=CtHparams,
    label="CT",
    paper="arXiv:2410.01276",
    needs={RETAIN},
    tiny={"epochs": 2},
    complexity="E N_r",
    batch_norm="move",
)
def ct(task: UnlearningTask, hp: CtHparams) -> nn.Module:
    """W[o, i, y, x] <- W[o, i, x, y] in every convolution, then minimise the data loss on D_r.

    An entry of the NeurIPS 2023 unlearning challenge; as Cadet et al. 2024 (Deep Unlearn) describe and port it. D_f is
    not used: the transposition damages all knowledge, and the fine-tuning brings back that of D_r. Kernels of 1x1 do
    not change, so networks made of them, transformers and dense networks are little more than fine-tuned.
    Batch norm trains, so its buffers move. Cost: epochs x |D_r| sample passes.

    Deviations:
        - kernels that are not square are left alone; in the ported code they change their shape.
        - the cosine moves the learning rate by step, the code by epoch.
        - augmentation is the recipe's, so that all methods see the same images.
    """
    transpose_kernels(task.model)
    return train(task, task.model, task.retain, hp)


@torch.no_grad()
def transpose_kernels(model: nn.Module) -> None:
    """Swap height and width of every square convolution kernel, in place. Twice is the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] == module.kernel_size[1]:
            module.weight.copy_(module.weight.transpose(2, 3).clone())

"""Amnesiac unlearning, by relabelling: wrong labels drawn once, trained among the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.finetuning import train
from raybench.mechanisms.relabelling import relabelled_passes
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class AmnesiacHparams:
    """Defaults: the authors' code, Adam as it comes for 10 epochs."""

    lr: Annotated[float, scientific(FloatDistribution(1e-5, 1e-2, log=True))] = 1e-3
    """Learning rate of Adam. The ports in Bad Teacher (arXiv:2205.08096) and SSD (arXiv:2308.07707) take 1e-4."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over D_f and D_r; 3 in the ports."""
    batch_size: int = 64
    """Samples a step; 128 in SSD's port."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Update rule."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 penalty."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode; the code and the ports train in train mode."""


@METHODS.register(
    "amnesiac",
    hparams=AmnesiacHparams,
    label="Amnesiac",
    paper="arXiv:2010.10981",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2},
    complexity="E (N_f + N_r)",
    batch_norm="move unless eval_mode",
)
def amnesiac(task: UnlearningTask, hp: AmnesiacHparams) -> nn.Module:
    """Relabel D_f at random, once, and train on it among D_r (Graves, Nagisetty, Ganesh 2021, section "Unlearning").

    The same mathematics as ``random_label`` with ``variant: mix, redraw: false``, by the same mechanism; it differs in
    the optimiser (Adam at 1e-3) and in class requests, where labels are drawn from the remaining classes only. This is
    what Bad Teacher, SSD and those who follow them call amnesiac unlearning. The paper gives that name to its *other*
    method, which takes back the updates of the batches that held D_f, recorded while the original was trained; that
    one is not offered here. Batch norm trains, so its buffers move unless ``eval_mode``.
    Cost: epochs x (|D_f| + |D_r|) sample passes.

    Deviations:
        - Adam starts afresh; the authors' code goes on with the state that the original's training left.
        - augmentation is the recipe's, so that all methods see the same images; the code and the ports use none.
    """
    passes = relabelled_passes(task, "mix", redraw=False, barred=task.forget_classes)
    return train(task, task.model, passes, hp, train_mode=not hp.eval_mode)

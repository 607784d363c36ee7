"""Random label (RL): teach the model wrong answers for the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.finetuning import train
from raybench.mechanisms.relabelling import Variant, relabelled_passes
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class RandomLabelHparams:
    """Defaults: SalUn's code (arXiv:2310.12508) for CIFAR-10, SGD at 0.01 for 10 epochs."""

    lr: Annotated[float, scientific(FloatDistribution(1e-4, 1e-1, log=True))] = 0.01
    """Learning rate. Published tunings reach from 3e-3 (SFR-on) to 0.1 (RUM)."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over the data of the variant."""
    variant: Variant = "sequential"
    """``sequential``: in each epoch all of D_f, then all of D_r, under one optimiser (SalUn's code on CIFAR-10 and
    SVHN). ``mix``: the two shuffled into one (the same code on CIFAR-100). ``forget_only``: D_f alone, the baseline of
    the boundary papers."""
    redraw: bool = True
    """Draw new labels in each epoch; otherwise once (``amnesiac``)."""
    exclusive: bool = True
    """Never draw the true label, as SalUn's paper says; its code draws from all K classes, so that a share of 1/K
    keeps the true label."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    schedule: Literal["none", "cosine"] = "none"
    """Learning rate over the run."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode. In train mode, as in the code, batches of D_f alone move the
    statistics of batch norm towards D_f; D_r, which comes last in an epoch, moves them back."""


@METHODS.register(
    "random_label",
    hparams=RandomLabelHparams,
    label="RL",
    paper="arXiv:2310.12508",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2},
    complexity="E (N_f + N_r), E N_f with D_f alone",
    batch_norm="move unless eval_mode",
)
def random_label(task: UnlearningTask, hp: RandomLabelHparams) -> nn.Module:
    """Minimise the data loss with random labels on D_f and true ones on D_r (Golatkar et al. 2020, section 6; in the
    form of SalUn, Fan et al. 2024, section 4, without its mask).

    Two published methods share this name and differ in how D_f and D_r meet: ``variant``. Driving the loss on D_f
    far above the retrained model's is over-forgetting, which membership attacks see. Batch norm trains, so its buffers
    move unless ``eval_mode``. Cost: epochs x (|D_f| + |D_r|) sample passes, epochs x |D_f| with D_f alone.

    Deviations:
        - labels other than the true one by default, as in the paper; the code draws from all classes
          (``exclusive: false``).
        - batches of 64 for the code's 256, like the other baselines here: a forget set may hold few hundred samples.
        - augmentation is the recipe's, so that all methods see the same images.
    """
    passes = relabelled_passes(task, hp.variant, redraw=hp.redraw, exclusive=hp.exclusive)
    return train(task, task.model, passes, hp, train_mode=not hp.eval_mode)

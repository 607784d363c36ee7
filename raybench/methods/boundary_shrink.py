"""Boundary Shrink: give each forget sample to the class that lies nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.adversarial import sign_step
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.inversion import frozen
from raybench.registry import FORGET, METHODS
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class BoundaryShrinkHparams:
    """Defaults: the authors' code (AllCNN on CIFAR-10), SGD at 1e-5 for 10 epochs."""

    eps: Annotated[float, scientific(FloatDistribution(0.03, 0.3))] = 0.1
    """Length of the attack's step in every pixel of [0, 1]."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-6, 1e-2, log=True))] = 1e-5
    """Learning rate. Small networks and forget sets need 1e-4 to 1e-3; above, the retained classes go too."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 20))] = 10
    """Passes over D_f."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 penalty."""
    force_wrong: bool = False
    """Where the attack fails, take the runner-up among the classes at the attacked image; otherwise such a sample goes
    on learning its own class."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode. The code trains in train mode, in which batches of D_f alone move
    the statistics of batch norm towards D_f."""

    def __post_init__(self) -> None:
        at_least(self, 0, "eps")
        at_least(self, 1, "batch_size")


@METHODS.register(
    "boundary_shrink",
    hparams=BoundaryShrinkHparams,
    label="Boundary Shrink",
    paper="arXiv:2303.11570",
    needs={FORGET},
    tiny={"epochs": 2, "lr": 1e-3},
    complexity="2 E N_f",
    batch_norm="move unless eval_mode",
)
def boundary_shrink(task: UnlearningTask, hp: BoundaryShrinkHparams) -> nn.Module:
    """Minimise the data loss on D_f labelled with the nearest class (Chen et al. 2023, section "Boundary Shrink").

    Nearest is what the original answers after one FGSM step, x' = clamp(x + eps sign(grad_x loss)): y' = argmax f(x').
    Made for whole classes; SalUn's and AMUN's tables run it on random samples too. Batch norm trains, so its buffers
    move unless ``eval_mode``; the attack reads them. Reports ``attack_success``, the share of D_f whose y' is another
    class without ``force_wrong``. Cost: epochs x |D_f| sample passes, and for the labels |D_f| x (2 forward, about half
    a backward).

    Deviations:
        - labels are made once: they depend on the original alone, and the code, which makes them again in every step,
          does not augment. Neither does this.
        - the attack works on [0, 1] pixels with the data set's own statistics; the code undoes a normalisation that its
          data never had, with a mistyped mean, so that its steps and clamps are off.
        - the code's extras (curvature penalty, weights by margin), off in the code unless asked for, are not offered.
    """
    with frozen(task.model):
        parts = [_attacked(task, hp, images, labels) for images, labels in task.forget.batches(hp.batch_size)]
    logits, labels = torch.cat(parts), task.forget.targets
    task.report({"attack_success": float((logits.argmax(1) != labels).double().mean())})
    if hp.force_wrong:
        logits = logits.scatter(1, labels[:, None], -torch.inf)
    relabelled = task.forget.relabelled(logits.argmax(1))
    return train(task, task.model, relabelled, hp, changes={"augment": False}, train_mode=not hp.eval_mode)


def _attacked(task: UnlearningTask, hp: BoundaryShrinkHparams, images: Tensor, labels: Tensor) -> Tensor:
    """The original's logits [n, K] at the attacked images of D_f [n, c, h, w]."""

    def logits(pixels: Tensor) -> Tensor:
        answer: Tensor = task.model(task.from_pixels(pixels))
        return answer

    attacked = sign_step(logits, task.to_pixels(images), labels, hp.eps)
    with torch.no_grad():
        return logits(attacked)

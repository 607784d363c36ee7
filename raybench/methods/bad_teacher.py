"""Bad Teacher: what a random network says about the forget set, what the original says about the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.distillation import kl_to_target
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.stepping import frozen_copy
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import above, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class BadTeacherHparams:
    """Defaults: the official code (Adam at 1e-4, one epoch). SFR-on's tuned run takes sgd at 0.02 for 10 epochs."""

    temperature: Annotated[float, scientific(CategoricalDistribution([1.0, 2.0, 4.0]))] = 1.0
    """Softening of all three networks; the divergence is not multiplied by its square."""
    retain_share: Annotated[float, scientific(FloatDistribution(0.05, 1.0, log=True))] = 0.3
    """Share of D_r that takes part, drawn once."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-5, 1e-1, log=True))] = 1e-4
    """Learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 1
    """Passes over D_f and the share of D_r, mixed."""
    batch_size: int = 256
    """Samples a step."""
    optimiser: Literal["adam", "sgd", "adamw"] = "adam"
    """Update rule."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """L2 penalty."""
    schedule: Literal["none", "cosine"] = "none"
    """Learning rate over the run."""
    mean_over_classes: bool = False
    """Divide the divergence by the number of classes, as the official code does (a mean over all entries): with sgd
    that is a smaller learning rate, with Adam next to nothing."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode; the official code trains them, on mixed batches."""

    def __post_init__(self) -> None:
        above(self, 0, "temperature")
        if not 0.0 < self.retain_share <= 1.0:
            raise ValueError(f"retain_share must be in (0, 1], got {self.retain_share}")


@METHODS.register(
    "bad_teacher",
    hparams=BadTeacherHparams,
    label="Bad Teacher",
    paper="arXiv:2205.08096",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2, "batch_size": 32},
    complexity="E (N_f + 0.3 N_r)",
    batch_norm="move unless eval_mode",
)
def bad_teacher(task: UnlearningTask, hp: BadTeacherHparams) -> nn.Module:
    """Minimise KL(u q_bad + (1 - u) q_o || p) with u = 1 on D_f (Chundawat et al. 2023, section "Proposed Method").

    q_o is the original model, q_bad a freshly initialised network of the same architecture; both are frozen and in
    evaluation mode. The random network is one fixed function, not a uniform one: what D_f ends up with can be told
    from what a retrained model says. Batches mix D_f with a share of D_r; batch norm trains on them, so its buffers
    move (``eval_mode`` keeps them).
    Cost: epochs x (|D_f| + retain_share x |D_r|) sample passes, and twice as many forward through the teachers.

    Deviations:
        - the divergence is the paper's, summed over classes; the official code averages over them
          (``mean_over_classes``).
        - augmentation is the recipe's, so that all methods see the same images.
    """
    model, good = task.model, frozen_copy(task.model)
    bad = task.new_model().requires_grad_(False).eval()
    retain = task.retain
    count = max(1, round(hp.retain_share * len(retain)))
    some = torch.randperm(len(retain), generator=task.generator, device=task.device)[:count]
    kept = retain.subset(some)
    # The labels play no part in the loss, so they carry u.
    mixed = task.forget.relabelled(torch.ones_like(task.forget.targets)).joined(
        kept.relabelled(torch.zeros_like(kept.targets))
    )

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        images, u = batch
        with torch.no_grad():
            answers = mixed_answers(good(images), bad(images), u, hp.temperature)
        divergence = kl_to_target(answers, network(images) / hp.temperature)
        return divergence / task.num_classes if hp.mean_over_classes else divergence

    return train(task, model, mixed, hp, loss=loss, train_mode=not hp.eval_mode)


def mixed_answers(good: Tensor, bad: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Probabilities [n, K]: of the ``bad`` logits [n, K] where ``u`` [n] is 1, of the ``good`` ones where it is 0."""
    return (torch.where(u[:, None] == 1, bad, good) / temperature).softmax(dim=1)

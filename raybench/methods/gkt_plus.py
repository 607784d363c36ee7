"""Gated knowledge transfer, improved: the generator shuns the forget classes, and no sample is thrown away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.mechanisms.distillation import adversarial_without, class_balance, kl_to_teacher, move_forget_excess
from raybench.mechanisms.inversion import has_batch_norm, no_statistics, recorded_norm_inputs, statistics_distance
from raybench.mechanisms.transfer import Lesson, Transfer, check_counts, run_transfer
from raybench.registry import CLASS, METHODS
from raybench.space import nuisance, scientific
from raybench.task import Facts, UnlearningTask


@dataclass(frozen=True)
class GktPlusHparams:
    """Defaults of the authors' code, where it has the field."""

    probability_cutoff: Annotated[float, scientific(FloatDistribution(1e-4, 0.1, log=True))] = 0.01
    """Above this teacher's probability of a forget class, its logit excess goes to the remaining classes."""
    student_lr: Annotated[float, nuisance(FloatDistribution(3e-3, 0.2, log=True))] = 0.05
    """Peak step size of the student: SGD, momentum 0.9, half a cosine to zero over the rounds."""
    generator_lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-2, log=True))] = 1e-3
    """Adam step size of the generator, betas 0.5 and 0.999."""
    pseudo_batches: Annotated[int, nuisance(IntDistribution(50, 1000, log=True))] = 1000
    """Largest number of rounds; the proxies may stop the run earlier."""
    batch_statistics: float = 1.0
    """Weight of the distance of batch statistics in the generator's loss; needs batch norm, 0 does without."""
    one_hot: float = 1.0
    """Weight of the teacher's cross-entropy on its own prediction: sure images."""
    balance: float = 1.0
    """Weight of the negative entropy of the mean prediction: images of all classes."""
    batch_size: int = 256
    """Generated samples a step."""
    latent_dim: int = 128
    """Dimensions of the generator's noise."""
    generator_width: int = 128
    """Feature maps of the generator."""
    generator_steps: int = 1
    """Generator steps a round, each on new samples."""
    student_steps: int = 10
    """Student steps a round, each on new samples."""
    clip_norm: float | None = None
    """Largest gradient norm, of the student and of the generator, or no clipping."""
    stop_on_proxies: bool = True
    """Stop, and choose the student, by images inverted from the teacher; off runs to the end and takes the last."""
    check_every: int = 50
    """Rounds between two looks at the proxies, and between two checkpoints."""
    proxies: int = 256
    """Inverted images per forget class."""
    inversion_steps: int = 200
    """Steps of the inversion of the proxies."""

    max_redraws = 1  # no batch is ever rejected; not a field

    def __post_init__(self) -> None:
        check_counts(self)


def needs_statistics(facts: Facts, hp: GktPlusHparams) -> str | None:
    """Why this setting cannot run here, or None."""
    reason = no_statistics(facts) if hp.batch_statistics else None
    return reason and f"{reason}; set batch_statistics: 0"


TINY = {"pseudo_batches": 4, "batch_size": 32, "latent_dim": 16, "generator_width": 4, "student_steps": 2}
TINY |= {"check_every": 2, "proxies": 8, "inversion_steps": 5}


@METHODS.register(
    "gkt_plus",
    hparams=GktPlusHparams,
    label="GKT+",
    paper="AAAI 2025, ISPF (inhibited synthesis, post-filter)",
    needs=set(),
    scope={CLASS},
    tiny={**TINY, "batch_statistics": 0.0},
    fresh=True,
    skip=needs_statistics,
    complexity="pseudo-batches x B x steps",
    batch_norm="fresh (a new student)",
)
def gkt_plus(task: UnlearningTask, hp: GktPlusHparams) -> nn.Module:
    """A new student learns from the original on generated images from which the forget classes are filtered out.

    Inhibited synthesis and post-filter (ISPF, AAAI 2025), from the formulas in the authors' code:
    L_G = -sum_k a_k t_k ln(t_k / s_k) + R_bn + CE(t, argmax t) + sum_k p_k ln p_k with a_k = -1 for the forget
    classes (the generator avoids their mass) and 1 for others, p the mean prediction of the batch; L_S =
    KL(T' || S), where T' holds for a forget class above ``probability_cutoff`` its smallest logit, its excess shared
    out to the remaining classes. No sample is dropped, no attention. The student's batch norm trains (and stays in
    evaluation mode in the generator's step); the teacher's stays as it is.
    Cost of a round: 11 batches forward through generator, teacher and student, 1 backward through all three and 10
    through the student; once, ``inversion_steps`` passes per proxy.

    Deviations:
        - the generator stays in training mode when it makes lessons, as in GKT; the authors use evaluation mode there.
        - generator and loop are those of GKT (``NoiseGenerator``, ``run_transfer``), with its stopping by proxies
          and a choice among students that the authors do not have; ``stop_on_proxies: false`` takes the last.
        - no normalisation layer between generator and networks: the generator makes normalised images directly.
    """
    if hp.batch_statistics and not has_batch_norm(task.model):
        raise ValueError("batch_statistics must be 0 for a model without batch norm, got a positive weight; set it")
    return run_transfer(_FilteredTransfer(task, hp))


class _FilteredTransfer(Transfer):
    """The losses of inhibited synthesis and post-filter."""

    hp: GktPlusHparams
    fresh_noise = True

    def optimisers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return (
            torch.optim.SGD(self.student.parameters(), lr=self.hp.student_lr, momentum=0.9),
            torch.optim.Adam(self.generator.parameters(), lr=self.hp.generator_lr, betas=(0.5, 0.999)),
        )

    def begin_round(self) -> None:
        self.student.train()
        done = (self.rounds - 1) / self.hp.pseudo_batches
        for group in self.student_optimiser.param_groups:
            group["lr"] = self.hp.student_lr * 0.5 * (1.0 + math.cos(math.pi * done))

    def generator_loss(self, images: Tensor) -> Tensor:
        with recorded_norm_inputs(self.teacher) as met:
            answers = self.teacher(images)
        self.student.eval()
        loss = -adversarial_without(answers, self.student(images), self.task.forget_classes).mean()
        self.student.train()
        loss = loss + self.hp.one_hot * F.cross_entropy(answers, answers.argmax(dim=1))
        loss = loss + self.hp.balance * class_balance(answers)
        if self.hp.batch_statistics:
            loss = loss + self.hp.batch_statistics * statistics_distance(met)
        return loss

    def lesson(self, images: Tensor) -> Lesson | None:
        answers = move_forget_excess(self.teacher(images), self.task.forget_classes, self.hp.probability_cutoff)
        return self.keep(images, answers, torch.ones(len(images), dtype=torch.bool, device=images.device), [])

    def student_loss(self, lesson: Lesson) -> Tensor:
        return kl_to_teacher(lesson.answers, self.student(lesson.images)).mean()

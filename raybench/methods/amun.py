"""AMUN: fine-tune on the nearest adversarial images of the forget set, with the wrong answers they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Split
from raybench.mechanisms.adversarial import Nearest, nearest_adversarial
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.inversion import frozen
from raybench.mechanisms.mixing import Mixture
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import Tensors, UnlearningTask

PILOT_RADIUS = 0.01


@dataclass(frozen=True)
class AmunHparams:
    """Defaults: the authors' scripts; they search learning rate and ``lr_step`` for each problem."""

    lr: Annotated[float, scientific(FloatDistribution(1e-5, 1e-1, log=True))] = 0.01
    """Learning rate."""
    lr_step: Annotated[int, nuisance(CategoricalDistribution([1, 5, 10]))] = 1
    """Epochs after which the learning rate is divided by ten, again and again."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over the data."""
    data: Literal["all", "retain", "forget", "alone"] = "all"
    """What the adversarial images D_A are trained with: D_r and D_f with its true labels (AMUN), D_r (the scripts'
    ``advonly``), D_f, or nothing; the last two need no D_r."""
    attack_steps: int = 50
    """Steps of the attack in each ball."""
    radius: float | None = None
    """Radius of the first ball, in [0, 1] pixels (Euclidean); the released attack has 0.04. None: the median of the
    radii that the first ``pilot`` samples of D_f need, starting at 0.01."""
    pilot: int = 50
    """Samples that set the radius."""
    batch_size: int = 128
    """Samples a step, of the attack too."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode; the code trains in train mode."""

    def __post_init__(self) -> None:
        for name in ("lr_step", "attack_steps", "pilot", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.radius is not None and not self.radius > 0.0:
            raise ValueError(f"radius must be positive, got {self.radius}; null has it found")


@METHODS.register(
    "amun",
    hparams=AmunHparams,
    label="AMUN",
    paper="arXiv:2503.00917",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2, "attack_steps": 5, "radius": 0.5, "lr_step": 1},
    complexity="50 N_f x doublings + E (2 N_f + N_r)",
    batch_norm="move unless eval_mode",
)
def amun(task: UnlearningTask, hp: AmunHparams) -> nn.Module:
    """Minimise the data loss on D_A, D_f and D_r (Ebrahimpour-Boroojeny et al. 2025, algorithm 1).

    D_A holds, for every forget sample, the first point of a projected gradient walk (Euclidean norm, steps of a tenth
    of the radius, radius doubled where it fails) at which the original's answer is wrong, with that answer as label.
    The walk is shared between trials. Made for random samples, which shall end where unseen ones are: with ``all``
    D_f keeps its true labels too, so a whole class stays known; ``retain`` and ``alone`` remove it. Batch norm
    trains, so its buffers move unless ``eval_mode``; the walk reads them. Reports ``attack_found``, the share of D_f
    for which there is such a point, and ``attack_distance``, their median distance in pixels. Cost: up to
    ``attack_steps`` forward passes and about half as many backward per sample of D_f and doubling, and epochs x (2
    |D_f| + |D_r|) sample passes.

    Deviations:
        - the walk follows the same direction in a form that does not round to zero where the original is sure; the
          code divides by the gradient's norm plus 1e-10 and stands still there.
        - samples for which no point is found within the pixel range are left out of D_A; the code searches on for ever.
        - the code attacks the whole training set with a fixed first radius, here D_f alone with the paper's pilot.
    """
    made = task.once(
        "adversarial",
        lambda _: _attack(task, hp),
        steps=hp.attack_steps,
        radius=hp.radius,
        pilot=hp.pilot if hp.radius is None else 0,
        batch_size=hp.batch_size,
    )
    found, answers = made["found"].bool(), made["answers"]
    distance = made["distance"][found]
    task.report(
        {
            "attack_found": float(found.double().mean()),
            "attack_distance": float(distance.median()) if len(distance) else 0.0,
        }
    )
    forget = task.forget
    adversarial = Split(
        made["images"][found],
        answers[found],
        torch.arange(int(found.sum()), device=task.device),
        forget.pixels,
        generator=forget.generator,
        tick=forget.tick,
    )
    beside = {"all": (FORGET, RETAIN), "retain": (RETAIN,), "forget": (FORGET,), "alone": ()}[hp.data]
    parts = [task.forget if name == FORGET else task.retain for name in beside]
    drops = tuple(e / hp.epochs for e in range(hp.lr_step, hp.epochs, hp.lr_step))
    return train(
        task,
        task.model,
        Mixture((adversarial, *parts)),
        hp,
        changes={"schedule": "step", "milestones": drops, "gamma": 0.1},
        train_mode=not hp.eval_mode,
    )


def _attack(task: UnlearningTask, hp: AmunHparams) -> Tensors:
    """For every sample of D_f, in order: image in [0, 1], answer, distance, and whether one was found."""

    def logits(pixels: Tensor) -> Tensor:
        answer: Tensor = task.model(task.from_pixels(pixels))
        return answer

    def walk(split: Split, radius: float) -> list[tuple[Tensor, Nearest]]:
        shown = [(task.to_pixels(images), labels) for images, labels in split.batches(hp.batch_size)]
        return [(p, nearest_adversarial(logits, p, y, radius, steps=hp.attack_steps)) for p, y in shown]

    with frozen(task.model):
        radius = hp.radius
        if radius is None:
            first = torch.arange(min(hp.pilot, len(task.forget)), device=task.device)
            pilot = walk(task.forget.subset(first), PILOT_RADIUS)
            radius = float(torch.cat([nearest.radius for _, nearest in pilot]).median())
        results = walk(task.forget, radius)
    return {
        "images": torch.cat([nearest.images for _, nearest in results]),
        "answers": torch.cat([nearest.answers for _, nearest in results]),
        "found": torch.cat([nearest.found for _, nearest in results]).long(),
        "distance": torch.cat([(nearest.images - pixels).flatten(1).norm(dim=1) for pixels, nearest in results]),
    }

"""SCRUB and SCRUB+R: disobey the original model on the forget set, obey it on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.mechanisms.distillation import kl_to_teacher
from raybench.mechanisms.stepping import Stepper, frozen_copy
from raybench.registry import FORGET, METHODS, RETAIN, VALIDATION
from raybench.space import above, at_least, nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import own_recipe


@dataclass(frozen=True)
class ScrubHparams:
    """Defaults: the official large-scale notebook (CIFAR-10, All-CNN). Small data there: adam, weight decay 0.1,
    alpha 0.5, gamma 1, temperature 2, 10 epochs of which 3 climb, batches of 32 and 64."""

    alpha: Annotated[float, scientific(FloatDistribution(1e-3, 1.0, log=True))] = 1e-3
    """Weight of the divergence from the teacher on D_r."""
    gamma: Annotated[float, scientific(FloatDistribution(0.1, 1.0))] = 0.99
    """Weight of the data loss on D_r."""
    temperature: Annotated[float, scientific(CategoricalDistribution([1.0, 2.0, 4.0]))] = 4.0
    """Softening T of both networks; the divergence is multiplied by T^2."""
    max_epochs: Annotated[int, scientific(IntDistribution(1, 10))] = 2
    """Epochs, the first ones, that begin with a pass over D_f (a climb); more than ``epochs`` means all."""
    forget_batch_size: Annotated[int, scientific(IntDistribution(8, 512, log=True))] = 32
    """Samples a step on D_f: it sets the number of climbing steps, which matters as much as the learning rate."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-5, 1e-1, log=True))] = 5e-4
    """Learning rate of both kinds of steps."""
    epochs: Annotated[int, nuisance(IntDistribution(2, 20))] = 3
    """Passes over D_r."""
    clip_norm: Annotated[float | None, nuisance(CategoricalDistribution([None, 0.5, 2.0, 8.0]))] = None
    """Largest gradient norm of the climbing steps, or none (official): the divergence has no upper bound, and small
    networks that train by sgd run away in one pass over D_f."""
    rewind: Annotated[bool, scientific(CategoricalDistribution([False, True]))] = False
    """SCRUB+R: return the epoch whose error on D_f is nearest the error of the last one on validation data."""
    batch_size: int = 128
    """Samples a step on D_r."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Update rule; its state is shared by both kinds of steps."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """L2 penalty; the notebooks take that of the original training (0.1 on small data)."""
    decay_after: tuple[int, ...] = (3, 5, 9)
    """Epochs after which the learning rate falls."""
    decay: float = 0.1
    """Factor by which it falls."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode on D_f; the official code trains there too."""

    def __post_init__(self) -> None:
        above(self, 0, "temperature", "clip_norm")
        at_least(self, 0, "alpha", "gamma", "decay", "max_epochs")
        at_least(self, 1, "epochs", "batch_size", "forget_batch_size")


@METHODS.register(
    "scrub",
    hparams=ScrubHparams,
    label="SCRUB",
    paper="arXiv:2302.09880",
    needs={FORGET, RETAIN, VALIDATION},
    tiny={"epochs": 2},
    complexity="M N_f + E N_r",
    batch_norm="move",
)
def scrub(task: UnlearningTask, hp: ScrubHparams) -> nn.Module:
    """Minimise alpha KL(p_o || p) + gamma loss on D_r, maximise KL(p_o || p) on D_f (Kurmanji et al. 2023, section 3).

    p_o is the original model, frozen. An epoch is a pass over D_f (in the first ``max_epochs``), then one over D_r, so
    a run ends with D_r. At the start both networks agree and the divergence has gradient zero: without batch norm,
    dropout and weight decay the first pass over D_f does nothing, which is the objective's nature, not a fault.
    ``rewind`` (SCRUB+R, section 3.2) keeps every epoch, takes as reference the error of the last one on validation
    data with the class shares of D_f, and returns the epoch whose error on D_f is nearest; validation data are touched
    only then. In class scenarios validation holds the remaining classes alone: there the reference is their error,
    which says nothing about a forgotten class, and SCRUB+R rewinds to where little was forgotten. Batch norm trains,
    so its buffers move (on D_r alone with ``eval_mode``). Cost: min(max_epochs, epochs) x |D_f| + epochs x |D_r| sample
    passes, as many forward through the teacher; with ``rewind`` also epochs x |D_f| + |validation| forward.

    Deviations:
        - rewinding is not in the official code; it follows the paper's description. Validation data get the class
          shares of D_f by weights instead of by choosing samples; of equally near epochs the latest is returned.
        - augmentation is the recipe's, so that all methods see the same images.
        - the pass over D_r takes one forward pass for both of its terms.
    """
    model, teacher = task.model, frozen_copy(task.model)
    recipe = own_recipe(task.recipe, hp)
    stepper = Stepper(model, recipe)

    def divergence(images: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(images)
        return hp.temperature**2 * kl_to_teacher(answers, logits, hp.temperature)

    def forget_loss(network: nn.Module, batch: Batch) -> Tensor:
        return -divergence(batch[0], network(batch[0]))

    def retain_loss(network: nn.Module, batch: Batch) -> Tensor:
        logits = network(batch[0])
        data = task.loss(cast(nn.Module, lambda _: logits), batch)  # the logits are there: no second pass
        return hp.gamma * data + hp.alpha * divergence(batch[0], logits)

    kept: list[tuple[float, dict[str, Tensor]]] = []
    for epoch in range(1, hp.epochs + 1):
        lr = hp.lr * hp.decay ** sum(epoch > after for after in hp.decay_after)
        if epoch <= hp.max_epochs:
            model.train(not hp.eval_mode)
            for batch in task.forget.batches(hp.forget_batch_size, augment=recipe.augment, shuffle=True):
                stepper.step(batch, forget_loss, lr=lr, clip_norm=hp.clip_norm)
        model.train()
        for batch in task.retain.batches(hp.batch_size, augment=recipe.augment, shuffle=True):
            stepper.step(batch, retain_loss, lr=lr)
        model.eval()
        if hp.rewind:
            kept += [(float(wrong(model, task.forget).mean()), {k: v.clone() for k, v in model.state_dict().items()})]
        task.checkpoint(model, epoch)
    if hp.rewind:
        errors = wrong(model, task.validation)
        reference = matched_error(errors, task.validation.targets, task.forget.targets)
        nearest = min(reversed(range(len(kept))), key=lambda index: abs(kept[index][0] - reference))
        model.load_state_dict(kept[nearest][1])
        task.report({"rewound_to": nearest + 1, "reference_error": reference})
    return model


@torch.no_grad()
def wrong(model: nn.Module, split: Split) -> Tensor:
    """1 where ``model`` errs and 0 elsewhere, float [n]."""
    return torch.cat([(model(x).argmax(1) != y).float() for x, y in split.batches(512)])


def matched_error(errors: Tensor, labels: Tensor, wanted: Tensor) -> float:
    """Mean of ``errors`` [n] with each class of ``labels`` [n] weighing as often as it stands in ``wanted`` [m].

    Classes that no sample has are left out; if that leaves none, the plain mean.
    """
    classes, counts = wanted.unique(return_counts=True)
    pairs = [(errors[labels == c].mean(), n) for c, n in zip(classes, counts, strict=True) if bool((labels == c).any())]
    if not pairs:
        return float(errors.mean())
    return float(sum(mean * n for mean, n in pairs) / sum(n for _, n in pairs))

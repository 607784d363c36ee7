"""NTK forgetting: the difference between the linearised networks trained on D_r and on D, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.fisher import fisher_of_split, over_labels
from raybench.mechanisms.fisher_noise import add_noise, head_parameters, scrubbing_variance
from raybench.mechanisms.laid_out import laid_out
from raybench.mechanisms.linearised import dual, kernel, pullback, residuals, trapezium
from raybench.mechanisms.start import initial_weights, train_toward_start
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import above, at_least, nuisance, scientific
from raybench.task import Facts, UnlearningTask
from raybench.training import Trained, TrainingJob

MOST_ROWS, MOST_BYTES = 5000, 4 * 2**30  # of the Jacobian


@dataclass(frozen=True)
class NtkForgettingTraining:
    """Own training of the original model."""

    weight_decay: float = 5e-4
    """lambda: the penalty is lambda / 2 |w - w_init|^2, in place of the recipe's. The official notebook has 0.1, which
    fine-tunes a pre-trained network on 500 images; from a random start nothing is learnt with that."""

    def __post_init__(self) -> None:
        above(self, 0, "weight_decay")  # else the linear systems are singular


@METHODS.training("ntk_forgetting", hparams=NtkForgettingTraining, label="L2 to the start", paper="arXiv:2003.02960")
def train_near_the_start(job: TrainingJob) -> Trained:
    """Weight decay to the initial weights, not to 0. Artefacts: ``init/<parameter>`` (those) and ``weight_decay``."""
    return train_toward_start(job, job.hparams.weight_decay)


@dataclass(frozen=True)
class NtkForgettingHparams:
    """Defaults: the official notebook's rules."""

    ridge: Annotated[float, scientific(FloatDistribution(1e-2, 1e4, log=True))] = 1.0
    """lambda of the linear systems, in units of the training's weight decay (1: the theory's); higher moves less."""
    scale: Annotated[float, nuisance(FloatDistribution(0.1, 300.0, log=True))] = 1.0
    """Factor of the step, on top of ``scaling``. At 1 a network that fits its data hardly moves, since its residuals
    vanish; one class of digits needs 30 or more, depending on the original and on which samples were drawn."""
    scaling: Literal["trapezium", "none"] = "trapezium"
    """Stretch the step by the notebook's rule, since networks move further than linearised ones, or not at all."""
    rows: int = 2000
    """The most samples x classes that are linearised (up to 5,000): D_f and D_r are thinned alike, at random."""
    layers: Literal["all", "head"] = "all"
    """Which weights are linearised and moved."""
    noise: float = 0.0
    """alpha of ``fisher_forgetting`` afterwards, by the linearised samples (the notebook's NTK + Fisher: 1e-9)."""

    def __post_init__(self) -> None:
        if not 2 <= self.rows <= MOST_ROWS:
            raise ValueError(f"rows must be in [2, {MOST_ROWS}], got {self.rows}")
        above(self, 0, "ridge")
        at_least(self, 0, "noise")


def _too_large(facts: Facts, hp: NtkForgettingHparams) -> str | None:
    """The Jacobian's size; the network is only laid out, on no device."""
    if (model := laid_out(facts)) is None:
        return None
    moved: nn.Module = model if hp.layers == "all" else model.head  # type: ignore[assignment]
    count = sum(p.numel() for p in moved.parameters())
    return (
        None
        if 4 * count * hp.rows <= MOST_BYTES
        else f"the Jacobian of {count} weights and {hp.rows} rows exceeds 4 GiB; set layers: head or fewer rows"
    )


@METHODS.register(
    "ntk_forgetting",
    hparams=NtkForgettingHparams,
    label="NTK forgetting",
    paper="arXiv:2003.02960",
    needs={FORGET, RETAIN},
    training="ntk_forgetting",
    tiny={"rows": 300},
    skip=_too_large,
    complexity="K N + N K^2 N",
    batch_norm="read",
)
def ntk_forgetting(task: UnlearningTask, hp: NtkForgettingHparams) -> nn.Module:
    """w <- w + s (w_Dr - w_D),  w_S = -J_S^T (J_S J_S^T + n lambda I)^{-1} e_S  (Golatkar et al. 2020).

    J are the gradients of the logits at the original model, e = softmax - onehot, n the samples of S; s is the
    notebook's "trapezium" rule, which needs the initial weights that the own training keeps. The buffers of batch norm
    are read and stay. The kernel J J^T is shared by all settings. Reports ``trapezium`` (s, unscaled), ``samples``.
    Cost: 1 forward and K backward passes per linearised sample, the kernel's product in equivalents (solving with it,
    about rows^3 operations, is not counted), then two passes each. Memory: J, 4 GiB at most, else it is skipped.

    Deviations:
        - at most ``rows`` rows (samples x classes) are linearised, D_f and D_r thinned alike; the paper takes all 500.
        - the original is trained from a random start, with decay toward it; the paper's start is a pre-trained network.
        - batch norm is trained by the recipe and frozen for the Jacobian; the notebook disables it throughout.
        - ``ridge`` and ``scale`` are searched; the notebook takes 1 for both.
    """
    model = task.model
    own = dict(model.named_parameters())
    names = list(own) if hp.layers == "all" else head_parameters(model)
    start = _vector(initial_weights(task, "ntk_forgetting"), names)
    found = _linearised(task, hp, names)
    forget, retain = task.forget.subset(found["forget"]), task.retain.subset(found["retain"])
    (x_f, _), (x_r, _), decay = forget.tensors(), retain.tensors(), hp.ridge * float(task.artefacts["weight_decay"])
    gram, errors, first = found["kernel"], found["errors"], len(forget) * task.num_classes  # D_f's rows, then D_r's
    whole = dual(gram, errors, len(forget) + len(retain), decay)
    part = dual(gram[first:, first:], errors[first:], len(retain), decay)
    w_r = -pullback(model, x_r, part, names)
    step = w_r + pullback(model, torch.cat([x_f, x_r]), whole, names)
    missed = _vector({name: p.detach() for name, p in own.items()}, names) - start - w_r
    factor = trapezium(step, missed) if hp.scaling == "trapezium" else 1.0
    task.report({"trapezium": factor, "samples": len(forget) + len(retain)})
    with torch.no_grad():
        for name, change in zip(names, step.split([own[name].numel() for name in names]), strict=True):
            own[name].add_(change.view_as(own[name]), alpha=hp.scale * factor)
    if hp.noise > 0.0:
        fisher = fisher_of_split(model, retain, loss=over_labels(task.loss))
        add_noise(model, scrubbing_variance(fisher, head_parameters(model), hp.noise), task.generator)
    return model


def _vector(values: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([values[name].flatten() for name in names])


def _linearised(task: UnlearningTask, hp: NtkForgettingHparams, names: list[str]) -> dict[str, Tensor]:
    """Which samples (``forget``, ``retain``: positions), the kernel of their rows, and their residuals [n K]."""

    def compute(generator: torch.Generator) -> dict[str, Tensor]:
        share = min(1.0, hp.rows / task.num_classes / (len(task.forget) + len(task.retain)))
        chosen = {}
        for part, split in ((FORGET, task.forget), (RETAIN, task.retain)):
            order = torch.randperm(len(split), generator=generator, device=generator.device)
            chosen[part] = order[: max(1, int(share * len(split)))]
        images, labels = task.forget.subset(chosen[FORGET]).joined(task.retain.subset(chosen[RETAIN])).tensors()
        with torch.no_grad():
            errors = residuals(task.model(images), labels)
        return {**chosen, "kernel": kernel(task.model, images, names), "errors": errors.flatten()}

    return task.once("kernel", compute, rows=hp.rows, layers=hp.layers)

"""Gradient ascent on the forget set, preconditioned by the K-FAC curvature of the loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.curvature import (
    KfacInverse,
    factored_layers,
    gradient_matrix,
    kfac_factors,
    matrix,
    parameters_of,
    relative_step,
    split_matrix,
)
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import fit


@dataclass(frozen=True)
class KfacAscentHparams:
    """Defaults are ours: the method is a control, and nobody has published settings for it."""

    step: Annotated[float, scientific(FloatDistribution(1e-4, 1e-1, log=True))] = 1e-2
    """Length of an update, as a share of the norm of the weights that move. Only the direction of the preconditioned
    gradient counts, so the scale of the curvature, which is tiny for a model that fits its data, does not."""
    damping: Annotated[float, scientific(FloatDistribution(1e-6, 1e2, log=True))] = 1e-2
    """Added to the curvature, as a share of its mean eigenvalue. Large values give plain (normalised) ascent."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 5
    """Passes over D_f."""
    batch_size: int = 64
    """Samples a step."""
    data: Literal["retain", "forget"] = "retain"
    """Whose curvature. An influence step uses that of the loss which is to stay small, so D_r; ``forget`` needs none
    of it."""
    labels: Literal["drawn", "exact", "data"] = "drawn"
    """Labels of the Fisher: drawn from the model, their exact expectation (as many passes as classes), or the data's
    (the empirical Fisher, not an approximation of the curvature)."""
    samples: int | None = 1000
    """Estimate the curvature on that many random samples, or on all."""


@METHODS.register(
    "kfac_ascent",
    hparams=KfacAscentHparams,
    label="K-FAC ascent",
    paper="arXiv:1503.05671",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2, "samples": 60},
    complexity="E N_f + samples",
    batch_norm="read",
)
def kfac_ascent(task: UnlearningTask, hp: KfacAscentHparams) -> nn.Module:
    """w <- w + step |w| u / |u|,  u = (A (x) G + damping)^{-1} gradient of the mean loss on D_f, by batches.

    The influence update of Koh and Liang 2017 (arXiv:1703.04730, section 2.1: up-weighting by -1/n moves the
    parameters by + H^{-1} gradient / n) with H the K-FAC factors of Martens and Grosse 2015 (arXiv:1503.05671, section
    3), repeated in small steps. It is what "Unlearning Trained Model by Activation Function deriving FIM" (Choi 2025)
    claims to approximate, and so the control of the method ``afim``.
    Touches D_r only for ``data: retain``. Parameters outside linear and convolutional layers, and the buffers of batch
    norm, do not move. Factors are those of the original model, shared by all settings of step, damping and epochs.
    Cost: epochs x |D_f| + ``samples`` (and as many forward) sample passes, and the matrix products in equivalents.

    Deviations:
        - the update is normalised to a relative length; the influence step 1/n is exact only for quadratic losses and
          says nothing where the gradient vanishes.
        - the factors are not renewed along the run: each renewal would cost as much as an epoch.
    """
    model = task.model
    layers = factored_layers(model)
    source = task.retain if hp.data == "retain" else task.forget

    def compute(generator: torch.Generator) -> dict[str, Tensor]:
        return kfac_factors(
            model,
            source,
            task.loss,
            labels=hp.labels,
            batch_size=hp.batch_size,
            samples=hp.samples,
            generator=generator,
        )

    factors = task.once("kfac", compute, data=hp.data, labels=hp.labels, samples=hp.samples, batch_size=hp.batch_size)
    inverse = KfacInverse(model, factors, hp.damping)

    @torch.no_grad()
    def precondition() -> None:
        solved = [inverse.solve(name, gradient_matrix(layer)) for name, layer in layers.items()]
        weights = torch.cat([matrix(layer).flatten() for layer in layers.values()])
        update = relative_step(torch.cat([u.flatten() for u in solved]), weights.double(), hp.step)
        parts = update.split([u.numel() for u in solved])
        for layer, part, u in zip(layers.values(), parts, solved, strict=True):
            for p, value in zip(layer.parameters(), split_matrix(layer, part.view_as(u)), strict=True):
                p.grad = value.to(p.dtype)

    recipe = dataclasses.replace(
        task.recipe,
        epochs=hp.epochs,
        batch_size=hp.batch_size,
        optimiser="sgd",
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        schedule="none",
        warmup=0.0,
        clip_norm=None,
    )
    fit(
        model,
        task.forget,
        recipe,
        loss=task.loss,
        objective=lambda losses: -losses.mean(),
        parameters=parameters_of(layers),
        before_step=precondition,
        after_epoch=lambda epoch: task.checkpoint(model, epoch),
        train_mode=False,
    )
    return model

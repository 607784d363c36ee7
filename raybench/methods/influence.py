"""Influence unlearning (IU): one step along the inverse curvature times what D_f adds to the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.data import Split
from raybench.fisher import fisher_of_split, over_labels
from raybench.mechanisms.curvature import kfac_factors, relative_step
from raybench.mechanisms.removal import diagonal_solve, kfac_solve, removal_gradient, woodfisher
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import above, at_least, scientific
from raybench.task import UnlearningTask

GRADIENT_BATCH = 64  # a matter of memory: the gradients are sums over samples


@dataclass(frozen=True)
class InfluenceHparams:
    """Curvature and its samples: the l1-sparse paper's code; the length of the step is searched there, too."""

    alpha: Annotated[float, scientific(FloatDistribution(1e-3, 1.0, log=True))] = 0.03
    """Length of the step, as a share of the norm of the weights (``unit: relative``), or times the influence."""
    unit: Literal["relative", "plain"] = "relative"
    """What alpha is measured in. Plain ones, in which the exact influence of a quadratic loss is 1 and the baseline's
    code takes 1 to 20 with ``woodfisher``, mean something else for every curvature: on digits |H^-1 v| / |w| lies
    between 1e-3 and 1e3. So a range for all of them needs the share; it is a change of scale only."""
    curvature: Literal["woodfisher", "diagonal", "kfac"] = "woodfisher"
    """What stands for the Hessian of the loss on D_r: the one-vector recursion of the baseline's code, the Fisher
    diagonal, or the K-FAC factors of the layers. The first stays close to the gradient itself (its ``prior`` is large
    against the gradients of a trained model); the others spare D_r more."""
    samples: int | None = 1000
    """Random samples of D_r that the curvature is estimated on, or all."""
    prior: float = 1000.0
    """N' of ``woodfisher``: weight of the identity."""
    damping: float = 1.0
    """Of ``diagonal`` and ``kfac``: added to the curvature, as a share of its mean."""
    labels: Literal["data", "exact"] = "data"
    """Labels of the Fisher of ``diagonal`` and ``kfac``: those of D_r, or their expectation by the model (K times the
    passes)."""

    def __post_init__(self) -> None:
        above(self, 0, "prior", "damping")
        at_least(self, 0, "alpha")
        at_least(self, 1, "samples")


@METHODS.register(
    "influence",
    hparams=InfluenceHparams,
    label="Influence",
    paper="arXiv:1703.04730",
    needs={FORGET, RETAIN},
    tiny={"samples": 60},
    complexity="N + 1000",
    batch_norm="read",
)
def influence(task: UnlearningTask, hp: InfluenceHparams) -> nn.Module:
    """w <- w + alpha H^{-1} v,  v = 1/N sum_{D_f} g - N_f / (N N_r) sum_{D_r} g  (Koh and Liang 2017, section 2.1).

    g are gradients of the loss at the original model. As a baseline of unlearning from the l1-sparse paper
    (arXiv:2304.04934), whose code is the recursion ``woodfisher`` (after arXiv:2004.14340). All in evaluation mode; the
    buffers of batch norm are read and stay, and with ``kfac`` so do all parameters outside linear and convolutional
    layers. The direction is shared by all settings of alpha. Reports ``influence_norm``, |H^{-1} v| / |w|.
    Cost: N + ``samples`` sample passes (times K with ``labels: exact``), and the products of ``kfac`` in equivalents.

    Deviations:
        - the step has a relative length (``unit: plain`` for the published one), because H^{-1} v differs by six
          orders of magnitude between curvatures and alpha has to be searched anyway.
        - the samples of the curvature are drawn at random; the code takes the first 1,000 of D_r one by one.
        - ``diagonal`` and ``kfac`` are not in that code; they are the usual stand-ins for the Hessian of the paper,
          which takes conjugate gradients or stochastic recursions on it.
    """
    model = task.model
    parameters = dict(model.named_parameters())
    direction = _direction(task, hp)
    flat = torch.cat([direction[name].flatten().double() for name in parameters])
    weights = torch.cat([p.detach().flatten().double() for p in parameters.values()])
    task.report({"influence_norm": float(flat.norm() / weights.norm())})
    step = hp.alpha * flat if hp.unit == "plain" else relative_step(flat, weights, hp.alpha)
    with torch.no_grad():
        for p, change in zip(parameters.values(), step.split([p.numel() for p in parameters.values()]), strict=True):
            p.add_(change.view_as(p).to(p.dtype))
    return model


def _direction(task: UnlearningTask, hp: InfluenceHparams) -> dict[str, Tensor]:
    """H^{-1} v of the original model."""
    model = task.model

    def compute(generator: torch.Generator) -> dict[str, Tensor]:
        v = removal_gradient(model, task.forget, task.retain, task.loss, GRADIENT_BATCH)
        drawn = _drawn(task.retain, hp.samples, generator)
        if hp.curvature == "woodfisher":
            return woodfisher(model, v, drawn.batches(1), task.loss, hp.prior)
        if hp.curvature == "diagonal":
            loss = over_labels(task.loss) if hp.labels == "exact" else task.loss
            return diagonal_solve(v, fisher_of_split(model, drawn, loss=loss), hp.damping)
        return kfac_solve(model, v, kfac_factors(model, drawn, task.loss, labels=hp.labels), hp.damping)

    settings = {"prior": hp.prior} if hp.curvature == "woodfisher" else {"damping": hp.damping, "labels": hp.labels}
    return task.once("direction", compute, curvature=hp.curvature, samples=hp.samples, **settings)


def _drawn(split: Split, samples: int | None, generator: torch.Generator) -> Split:
    """That many random samples, or all in random order (the recursion depends on it)."""
    order = torch.randperm(len(split), generator=generator, device=generator.device)
    return split.subset(order[: len(split) if samples is None else samples])

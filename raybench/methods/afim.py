"""AFIM: unlearning by other activation functions, said to derive the Fisher information."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from raybench.errors import UserError
from raybench.mechanisms.activation import BoundedActivation, Replaced, SurrogateReLU, no_relus, relu_inputs
from raybench.mechanisms.activation_steps import closed_form
from raybench.mechanisms.mixing import endless, with_others
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import fit, own_recipe

CALIBRATION_SAMPLES = 256  # of D_f, for the scale of every layer


@dataclass(frozen=True)
class AfimHparams:
    """The document gives no number; the defaults are ours."""

    variant: Literal["A", "B", "C", "relu"] = "A"
    """A: train with f in the place of ReLU. B: ReLU forward, the document's factor backward. C: Eq. 14 layer by layer,
    in closed form. relu: the loop of A and B with ReLU left alone, the control that has all but the idea."""
    direction: Literal["ascent", "descent"] = "ascent"
    """On the loss of D_f. Eqs. 1, 13 and 14 climb; Algorithm 1, taken literally, descends and forgets nothing (with B,
    whose backward pass is the gradient of no loss, either may go either way)."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-5, 1e-2, log=True))] = 1e-3
    """Learning rate of Adam (all but C)."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 2
    """Passes over D_f; C makes one step in each."""
    batch_size: int = 64
    """Samples of D_f a step; in C memory only."""
    kappa: Annotated[float, scientific(FloatDistribution(0.01, 10.0, log=True))] = 0.1
    """beta of a layer = kappa x the mean square of its pre-activations (C: of its outputs). Unused by relu."""
    mu: Annotated[float, scientific(CategoricalDistribution((0.0, 0.1, 1.0, 10.0)))] = 1.0
    """Weight of the loss on D_r samples that are mixed in (the document's mixed batches). 0: D_r is not touched."""
    rho: float = 1.0
    """Samples of D_r for one of D_f in a mixed step; 0 mixes in nothing."""
    offset: float = 1.0
    """sqrt(beta) C of the activation: how far it saturates to the right. 1: unit slope at its zero (A)."""
    epsilon: float = 1e-2
    """Inputs of an activation are kept this far from 0, in units of their root mean square (A, B)."""
    limit: float = 5.0
    """Largest size of the backward factor (B)."""
    restore: Literal["at_end", "layer_by_layer"] = "at_end"
    """ReLU comes back at the end, or one layer after the other in equal parts of the run: our reading of the remark
    that the process can be divided (A, B)."""
    step: float = 0.1
    """Length of C's update of a layer, as a share of the norm of its weights. Search it where variant is C."""
    damping: float = 1e-2
    """Added to A = I I^T / B in C, in units of its mean eigenvalue; inputs rarely have full rank."""
    clip_norm: float = 5.0
    """Largest gradient norm (all but C)."""

    def __post_init__(self) -> None:
        if not (self.rho >= 0.0 and self.mu >= 0.0):
            raise ValueError(f"mu and rho must not be negative, got mu={self.mu} and rho={self.rho}")


@METHODS.register(
    "afim",
    hparams=AfimHparams,
    label="AFIM",
    paper="Choi 2025, Unlearning Trained Model by Activation Function deriving FIM",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2},
    skip=lambda facts, hp: no_relus(facts) if hp.variant in ("A", "B") else None,
    complexity="E (1 + rho) N_f",
    batch_norm="read",
)
def afim(task: UnlearningTask, hp: AfimHparams) -> nn.Module:
    """Climb the loss of D_f with other activation functions (A, B), or by Eq. 14 in closed form (C): Choi 2025.

    "Unlearning Trained Model by Activation Function deriving FIM", 12 April 2025: no code, no results. Minimises -s
    loss(D_f) + mu loss(D_r batches), s = 1 climbing and -1 descending, with the network's ReLUs changed (A, B) or
    with each layer's gradient times P = pinv(I)^T (S^T S - beta) pinv(I) of Eq. 14 (C; I and S are the layer's
    inputs and outputs on D_f). The model that is returned, and that checkpoints see, has its ReLUs back.

    What holds in the document: the influence update (Eq. 1, an *ascent* on D_f), the second derivatives of softmax,
    H = diag(p) - p p^T, and the types of Eqs. 13 and 14. What does not: J_O = (dO/dL) J_L (L is a scalar) and hence
    Eq. 8, a heuristic; Eqs. 9 to 11, which make a Gauss-Newton matrix negative; the factor 2 of F^{-1} (1/2, rank one);
    replacing w - w*, which is 0, by the weights; f' = (f^2 - beta) / x^2, which has the wrong sign for the f given; and
    Algorithm 1, which descends on D_f, never uses f, and starts from a model retrained without D_f. For full rank
    P = W^T W - (beta / B) A^{-1}: climbing along W^T W less a descent preconditioned by the inputs, not an inverse
    Fisher. A gain over plain ascent in the same loop (``variant: relu``, gradient_ascent, neggrad_plus, kfac_ascent)
    is what a claim for the method needs.

    With ``mu`` or ``rho`` 0 the retain data are declared but not touched. Batch norm keeps its buffers. A and B need
    nn.ReLU modules (``UserError`` without). Reports ``relus``, how many layers were changed (A, B).
    Cost: epochs x (1 + rho) x |D_f| sample passes (mu = 0: epochs x |D_f|) and one batch forward; C also the products.

    Deviations:
        - f is used, and the loss climbed. Algorithm 1 at its word is ``variant: relu, direction: descent, mu: 0``.
        - the derivative of f is the true one, of opposite sign; the printed factor is what B multiplies with.
        - matching of parameters (M_A, M_B, C in Algorithm 1) is left out: it needs the retrained model.
        - beta per layer, epsilon, clipping and damping are ours: the document has one beta and no safeguard at 0.
        - C adds the bias to W and I, so that S = W I is exact.
    """
    mixed = hp.mu > 0.0 and hp.rho > 0.0
    size = max(1, round(hp.rho * hp.batch_size))
    others = endless(task.retain, size, augment=task.recipe.augment) if mixed else None
    sign = 1.0 if hp.direction == "ascent" else -1.0
    if hp.variant == "C":
        return closed_form(task, hp, sign, others)
    model = task.model
    make = {
        "A": lambda square: BoundedActivation(hp.kappa * square, hp.epsilon * math.sqrt(square), hp.offset),
        "B": lambda square: SurrogateReLU(hp.kappa * square, hp.epsilon * math.sqrt(square), hp.limit),
    }
    squares = {}
    if hp.variant in make:
        squares = relu_inputs(model, next(task.forget.batches(CALIBRATION_SAMPLES))[0])
        if not squares:
            raise UserError(f"variant {hp.variant} of afim must find nn.ReLU modules, the model has none; use C")
        task.report({"relus": len(squares)})
    steps = hp.epochs * math.ceil(len(task.forget) / hp.batch_size)
    with Replaced(model, squares, make.get(hp.variant, lambda square: nn.ReLU())) as replaced:

        def after_step(step: int) -> None:
            if hp.restore == "layer_by_layer":
                replaced.restore(step * len(replaced) // steps)

        def after_epoch(epoch: int) -> None:
            now = replaced.restored
            replaced.restore(len(replaced))
            task.checkpoint(model, epoch)
            replaced.restore(now)

        fit(
            model,
            task.forget,
            own_recipe(task.recipe, hp, optimiser="adam"),
            loss=with_others(task.loss, others, -sign, hp.mu) if others else task.loss,
            objective=torch.mean if others else lambda losses: -sign * losses.mean(),
            after_step=after_step,
            after_epoch=after_epoch,
            train_mode=False,
        )
    return model

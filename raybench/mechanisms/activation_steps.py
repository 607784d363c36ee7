"""Steps in closed form, layer by layer, from the moments of what goes through a layer.

"Unlearning Trained Model by Activation Function deriving FIM" (Choi, 12 April 2025), Eq. 14: each layer's gradient
times P = pinv(I)^T (S^T S - beta) pinv(I), with I and S the layer's inputs and outputs on D_f (see
``raybench.mechanisms.curvature.activation_preconditioner``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

from raybench.data import Batch
from raybench.mechanisms.curvature import (
    Layers,
    Moments,
    activation_preconditioner,
    factored_layers,
    gradient_matrix,
    input_moments,
    matrix,
    relative_step,
    split_matrix,
)
from raybench.passes import count_products
from raybench.task import UnlearningTask


class ClosedForm(Protocol):
    """The settings; see ``raybench.methods.afim.AfimHparams``."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def kappa(self) -> float: ...
    @property
    def mu(self) -> float: ...
    @property
    def step(self) -> float: ...
    @property
    def damping(self) -> float: ...


def closed_form(task: UnlearningTask, hp: ClosedForm, sign: float, others: Iterator[Batch] | None) -> nn.Module:
    """w <- w - step |w| d / |d|,  d = (gradient of -sign loss(D_f) + mu loss(others)) P, per layer, once an epoch.

    Changes ``task.model``, in evaluation mode, and offers it to the harness after each epoch. ``others`` gives as many
    batches an epoch as D_f has. Cost: one sample pass per sample of both, and the products.
    """
    model, count = task.model.eval(), len(task.forget)
    layers = factored_layers(model)
    for epoch in range(1, hp.epochs + 1):
        model.zero_grad(set_to_none=True)
        with input_moments(model, layers) as moments:
            for batch in task.forget.batches(hp.batch_size, augment=task.recipe.augment):
                (-sign * task.loss(model, batch).sum() / count).backward()
        batches = math.ceil(count / hp.batch_size) if others is not None else 0
        for _ in range(batches):
            assert others is not None
            (hp.mu * task.loss(model, next(others)).mean() / batches).backward()
        _step(model, layers, moments, hp)
        task.checkpoint(model, epoch)
    return model


@torch.no_grad()
def _step(model: nn.Module, layers: Layers, moments: Mapping[str, Moments], hp: ClosedForm) -> None:
    """Move every layer along its preconditioned gradient."""
    for name, layer in layers.items():
        here = moments[name]
        beta = hp.kappa * here.squares / (here.columns * len(here.cross))
        p = activation_preconditioner(here.inputs, here.cross, beta, here.columns, hp.damping)
        weights = matrix(layer)
        update = relative_step(gradient_matrix(layer).double() @ p, weights.double(), hp.step)
        for parameter, value in zip(layer.parameters(), split_matrix(layer, update), strict=True):
            parameter.sub_(value)
        o, d = weights.shape
        count_products(model, 4.0 * d * d * (o + d))

"""Saliency of weights: the gradient of a loss over a whole split, by which methods choose what to change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from raybench.data import Batch
from raybench.training import Loss


def summed_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, *, weight: float = 1.0
) -> dict[str, Tensor]:
    """Parameter name -> ``weight`` times the sum over ``batches`` of the gradient of the batch's *mean* loss.

    Taken in evaluation mode; modes, gradients and buffers are left as they were. Every batch weighs the same, so a
    short last one weighs more per sample (the convention of the codes that use this). Parameters that the loss does
    not reach have zeros. Cost: one sample pass per sample.
    """
    modes = {module: module.training for module in model.modules()}
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    model.eval()
    try:
        for batch in batches:
            found = torch.autograd.grad(loss(model, batch).mean(), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += weight * gradient
    finally:
        for module, training in modes.items():
            module.training = training
    return sums

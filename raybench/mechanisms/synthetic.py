"""Training on images that a method made itself: tensors, not a split of a dataset."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybench.training import Recipe, make_optimiser

FEWEST = 2  # batch norm in training mode needs two samples


def fit_images(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
    clip_value: float | None = None,
    copies: int = 1,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train ``model`` in place by Adam on ``images`` [n, c, h, w], in training mode; it ends in evaluation mode.

    ``loss(images, rows)`` gives the losses [b] of a batch, ``rows`` [b] saying which images it holds; their mean is
    minimised. An epoch is ``copies`` times every image in an order drawn from ``generator``; of more than one image,
    a last batch of a single one is left out. ``clip_value`` bounds every entry of the gradient.
    ``after_epoch(epoch)`` counts from 1.
    """
    optimiser = make_optimiser(model.parameters(), Recipe(optimiser="adam", lr=lr, weight_decay=weight_decay))
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(images) * copies, generator=generator, device=generator.device) % len(images)
        for rows in order.split(batch_size):
            if len(rows) < min(FEWEST, len(images)):
                continue
            optimiser.zero_grad(set_to_none=True)
            loss(images[rows], rows).mean().backward()
            if clip_value is not None:
                torch.nn.utils.clip_grad_value_(model.parameters(), clip_value)
            optimiser.step()
        model.eval()
        if after_epoch is not None:
            after_epoch(epoch)
    model.eval()

"""One optimiser, one step at a time: for methods whose steps come from two splits in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybench.data import Batch
from raybench.training import Loss, Recipe, make_optimiser


class Stepper:
    """Steps on ``model`` by ``recipe`` (optimiser, precision, memory format), whose state lives through all of them.

    The caller draws the batches, sets the learning rate and chooses the mode of the model.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(self.parameters, recipe)

    def step(
        self,
        batch: Batch,
        loss: Loss,
        *,
        lr: float,
        objective: Callable[[Tensor], Tensor] = torch.mean,
        after_backward: Callable[[], None] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        """One step on ``objective`` of the per-sample losses [n] of ``batch``. ``after_backward()`` may change the
        gradients before they are clipped to ``clip_norm``."""
        images, labels = batch
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            value = objective(loss(self.model, (images, labels)))
        value.backward()
        if after_backward is not None:
            after_backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        self.optimiser.step()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A teacher: ``model`` as it is now, in evaluation mode, no parameter trainable."""
    return copy.deepcopy(model).requires_grad_(False).eval()

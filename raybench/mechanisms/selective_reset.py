"""Select entries by their Fisher ratio, reset them, fine-tune nothing else: the two halves of DeepClean.

A control that selects differently shares the second half, and so differs in the choice of entries alone.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from raybench.fisher import fisher_of_split
from raybench.mechanisms.masking import (
    Frozen,
    Tensors,
    fisher_ratio,
    norm_parameters,
    overwrite,
    select_above,
    selected_share,
    top_threshold,
    trace_ratio,
)
from raybench.task import UnlearningTask
from raybench.training import fit

MOMENTUM = 0.9  # of sgd


class Diagonals(Protocol):
    """How the Fisher diagonals are measured."""

    @property
    def fisher_mode(self) -> Literal["per_sample", "per_batch"]: ...
    @property
    def fisher_batch_size(self) -> int: ...
    @property
    def fisher_samples(self) -> int | None: ...


class Selection(Diagonals, Protocol):
    """The settings of the first half; what they mean is said where a method defines them."""

    @property
    def gamma(self) -> float | None: ...
    @property
    def gamma_unit(self) -> Literal["trace_ratio", "absolute"]: ...
    @property
    def quantile(self) -> float | None: ...
    @property
    def cap(self) -> float: ...
    @property
    def exclude_norm(self) -> bool: ...


class Finetuning(Protocol):
    """The settings of the second half."""

    @property
    def reset(self) -> Literal["zero", "reinit", "none"]: ...
    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def optimiser(self) -> Literal["adam", "adamw", "sgd"]: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def bn_buffers(self) -> Literal["update", "freeze"]: ...


def select_by_fisher(task: UnlearningTask, hp: Selection) -> tuple[dict[str, Tensor], float]:
    """The mask of the entries of ``task.model`` with I_f / I_r above the threshold, and that threshold.

    The diagonals are a ``once`` value (they do not depend on gamma). Cost: |D_f| + |D_r| (or ``fisher_samples``)
    sample passes.
    """
    forget, retain = fisher_diagonals(task, hp)
    ratio = fisher_ratio(forget, retain)
    if hp.exclude_norm:
        ratio = {name: r for name, r in ratio.items() if name not in norm_parameters(task.model)}
    if hp.gamma is None:
        threshold = top_threshold(ratio, hp.quantile or 0.0)
    else:
        threshold = hp.gamma * (trace_ratio(forget, retain) if hp.gamma_unit == "trace_ratio" else 1.0)
    return select_above(ratio, threshold, hp.cap), threshold


def reset_and_finetune(task: UnlearningTask, mask: Tensors, hp: Finetuning) -> nn.Module:
    """Reset the entries of ``task.model`` in ``mask`` and fine-tune them on D_r; the rest stays to the bit.

    Where nothing is selected the model comes back as it was. Cost: epochs x |D_r| sample passes.
    """
    model = task.model
    if selected_share(mask) == 0.0:
        return model
    if hp.reset != "none":
        fresh = dict(task.new_model().named_parameters()) if hp.reset == "reinit" else None
        overwrite(model, mask, fresh)
    frozen = Frozen(model, mask)
    recipe = dataclasses.replace(
        task.recipe,
        epochs=hp.epochs,
        batch_size=hp.batch_size,
        optimiser=hp.optimiser,
        lr=hp.lr,
        momentum=MOMENTUM,
        weight_decay=hp.weight_decay,
        schedule="none",
        warmup=0.0,
        clip_norm=None,
    )
    fit(
        model,
        task.retain,
        recipe,
        loss=task.loss,
        after_step=lambda step: frozen.restore(),
        after_epoch=lambda epoch: task.checkpoint(model, epoch),
        train_mode=hp.bn_buffers == "update",
    )
    return model


def fisher_diagonals(task: UnlearningTask, hp: Diagonals) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """I_f and I_r of the original model, a ``once`` value. Cost: |D_f| + |D_r| (or ``fisher_samples``) passes."""

    def compute(generator: torch.Generator) -> dict[str, Tensor]:
        found = {}
        for part, split, samples in (("forget", task.forget, None), ("retain", task.retain, hp.fisher_samples)):
            diagonal = fisher_of_split(
                task.model,
                split,
                mode=hp.fisher_mode,
                batch_size=hp.fisher_batch_size,
                samples=samples,
                generator=generator,
                loss=task.loss,
            )
            found.update({f"{part}/{name}": value for name, value in diagonal.items()})
        return found

    both = task.once("fisher", compute, samples=hp.fisher_samples, mode=hp.fisher_mode, batch_size=hp.fisher_batch_size)
    forget, retain = (
        {name.removeprefix(prefix): value for name, value in both.items() if name.startswith(prefix)}
        for prefix in ("forget/", "retain/")
    )
    return forget, retain

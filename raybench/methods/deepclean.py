"""DeepClean: reset the weights that matter to the forget set only, and fine-tune just those on the retain set."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.fisher import fisher_of_split
from raybench.mechanisms.masking import (
    Frozen,
    fisher_ratio,
    norm_parameters,
    overwrite,
    select_above,
    selected_share,
    top_threshold,
    trace_ratio,
)
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import fit


@dataclass(frozen=True)
class DeepCleanHparams:
    """Only the rule is published; gamma and the settings of the fine-tuning are not, so the defaults are ours."""

    gamma: Annotated[float | None, scientific(FloatDistribution(0.5, 50.0, log=True))] = 2.0
    """Entries with Fisher ratio I_f / I_r above this are selected; higher selects fewer. None: use ``quantile``."""
    gamma_unit: Literal["trace_ratio", "absolute"] = "trace_ratio"
    """What gamma is measured in: tr I_f / tr I_r of the model, or plain numbers. The first is a change of scale
    only, and lets one gamma mean the same everywhere: on digits with lenet5 tr I_f / tr I_r lies between 1e-5 and
    2 depending on seed and recipe, so 2 selects 3 to 12 % in these units and 0.3 to 12 % in plain ones."""
    quantile: float | None = None
    """Instead of ``gamma`` (set that to null): select this top share of all entries, such as 0.1."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-2, log=True))] = 1e-3
    """Learning rate of the fine-tuning; the range fits adam (for sgd give ten times as much, for a ViT a tenth)."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 5
    """Passes over D_r."""
    batch_size: int = 64
    """Samples a step of the fine-tuning."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Update rule of the fine-tuning; sgd has momentum 0.9."""
    weight_decay: float = 0.0
    """L2 penalty on the selected entries; the others are held still whatever this is."""
    reset: Literal["zero", "reinit", "none"] = "zero"
    """What becomes of the selected entries first: zero (as the paper's title says), a fresh draw of the
    initialiser, or nothing (the two-step recipe of the authors' slides)."""
    cap: float = 0.9
    """Largest share of one tensor that may be selected. Two zeroed layers in a row would get no gradient ever."""
    exclude_norm: bool = False
    """Never select scales and shifts of normalisation layers; a zeroed scale can silence a channel for good."""
    bn_buffers: Literal["update", "freeze"] = "update"
    """Running statistics during the fine-tuning. ``freeze`` keeps the whole network in evaluation mode."""
    fisher_mode: Literal["per_sample", "per_batch"] = "per_sample"
    """The definition, or squared mean gradients of batches of ``fisher_batch_size``, as other people's code has it."""
    fisher_batch_size: int = 64
    """Samples a batch of the Fisher diagonals; per_sample does not depend on it."""
    fisher_samples: int | None = None
    """Estimate the Fisher diagonal of D_r on that many random samples (unbiased), or use all."""

    def __post_init__(self) -> None:
        if (self.gamma is None) == (self.quantile is None):
            raise ValueError(
                f"exactly one of gamma and quantile must select, got gamma={self.gamma} and quantile={self.quantile}; "
                "set the other to null"
            )
        for name in ("quantile", "cap"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {value}")


@METHODS.register(
    "deepclean",
    hparams=DeepCleanHparams,
    label="DeepClean",
    paper="arXiv:2311.10448",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2, "fisher_samples": 100},
)
def deepclean(task: UnlearningTask, hp: DeepCleanHparams) -> nn.Module:
    """Shi et al. 2023: r_i = I_f,i / I_r,i, reset the entries with r_i > gamma, fine-tune only those on D_r.

    Deviations: gamma is in units of tr I_f / tr I_r unless told otherwise, and ``cap`` (see the fields).
    I_f and I_r are Fisher diagonals of the original model, shared by all settings of gamma. Frozen entries are
    equal to the original's to the bit. Where nothing is selected the original comes back. Reports ``threshold``
    (in plain numbers) and ``selected``, the selected share.
    Cost: |D_f| + |D_r| (or ``fisher_samples``) + epochs x |D_r| sample passes.
    """
    model = task.model
    forget, retain = _fisher_diagonals(task, hp)
    ratio = fisher_ratio(forget, retain)
    if hp.exclude_norm:
        ratio = {name: r for name, r in ratio.items() if name not in norm_parameters(model)}
    if hp.gamma is None:
        threshold = top_threshold(ratio, hp.quantile or 0.0)
    else:
        threshold = hp.gamma * (trace_ratio(forget, retain) if hp.gamma_unit == "trace_ratio" else 1.0)
    mask = select_above(ratio, threshold, hp.cap)
    selected = selected_share(mask)
    task.report({"selected": selected, **({"threshold": threshold} if math.isfinite(threshold) else {})})
    if selected == 0.0:
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
        momentum=0.9,
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


def _fisher_diagonals(task: UnlearningTask, hp: DeepCleanHparams) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """I_f and I_r of the original model."""

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

"""DeepClean: reset the weights that matter to the forget set only, and fine-tune just those on the retain set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.masking import selected_share
from raybench.mechanisms.selective_reset import reset_and_finetune, select_by_fisher
from raybench.registry import CLASSIFICATION, DENOISING, FORGET, METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


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
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
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
    tasks={CLASSIFICATION, DENOISING},
    tiny={"epochs": 2, "fisher_samples": 100},
    complexity="N_f + N_r + E N_r",
    batch_norm="move unless bn_buffers: freeze",
)
def deepclean(task: UnlearningTask, hp: DeepCleanHparams) -> nn.Module:
    """Shi et al. 2023: r_i = I_f,i / I_r,i, reset the entries with r_i > gamma, fine-tune only those on D_r.

    I_f and I_r are empirical Fisher diagonals of the original model (per sample, in evaluation mode), shared by all
    settings of gamma. Frozen entries are equal to the original's to the bit, whatever the optimiser does. Where
    nothing is selected the original comes back; entries that matter to neither set have ratio 0 and stay. Batch
    norm trains during the fine-tuning, so its running statistics move, also where scale and shift are frozen
    (``bn_buffers: freeze`` holds them). Reports ``threshold`` (in plain numbers) and ``selected``, the selected share.
    Cost: |D_f| + |D_r| (or ``fisher_samples``) + epochs x |D_r| sample passes.

    Deviations:
        - gamma is in units of tr I_f / tr I_r unless ``gamma_unit`` is absolute: the paper publishes no value, and
          plain numbers mean something else on every model (see the field).
        - at most ``cap`` = 90 % of a tensor is selected: a layer that is zeroed whole beside another gets no gradient
          ever. With ``cap: 1`` the published rule.
        - selected entries are set to zero before the fine-tuning, as the title says; the authors' slides leave this
          step out (``reset: none``).
        - the Fisher ratio has eps = 1e-8 of the tensor's mean I_r (+ 1e-30) in its denominator, where the slides have
          nothing and other people's code 1e-9: on a model that fits its data an absolute constant decides alone.
        - optimiser, learning rate and epochs of the fine-tuning are ours (adam, 1e-3, 5); they are not published, and
          there is no official code.
        - ``fisher_samples`` estimates I_r on a random part of D_r; the paper uses all.
    """
    mask, threshold = select_by_fisher(task, hp)
    task.report({"selected": selected_share(mask), **({"threshold": threshold} if math.isfinite(threshold) else {})})
    return reset_and_finetune(task, mask, hp)

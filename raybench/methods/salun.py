"""SalUn: random labels, learnt only by the weights that the forget set's gradient singles out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.data import Batches
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.masking import Frozen, Tensors, select_top, selected_share
from raybench.mechanisms.mixing import endless, with_others
from raybench.mechanisms.relabelling import relabelled_passes
from raybench.mechanisms.saliency import summed_gradients
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class SalUnHparams:
    """Defaults: the paper's code, with the README's learning rate for 10 % of CIFAR-10 on ResNet-18."""

    share: Annotated[float, scientific(FloatDistribution(0.1, 0.9))] = 0.5
    """Share of all weights that may change. 0.5 is the paper's threshold, the median; SFR-on's tuning took 0.2."""
    lr: Annotated[float, nuisance(FloatDistribution(5e-4, 1e-1, log=True))] = 0.013
    """Learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over D_f and D_r (over D_r beside which D_f is cycled, with ``weighted``)."""
    objective: Literal["sequential", "mix", "weighted", "forget_only"] = "sequential"
    """How D_f and D_r meet. The code: in each epoch D_f before D_r (``sequential``; CIFAR-10, SVHN) or shuffled into
    one (``mix``; CIFAR-100), where both weigh as they have samples. The paper's formula: the mean loss on D_f plus
    ``alpha`` times that on D_r in every step (``weighted``). D_f alone: the rewinding paper's baseline."""
    alpha: float = 1.0
    """Weight of D_r with ``weighted``."""
    freeze: Literal["exact", "grad_only"] = "exact"
    """Put the other weights back after each step, as the code does since February 2026, or only zero their gradients,
    so that weight decay still shrinks them: numbers published from 2023 to 2025 are of the latter."""
    form: Literal["hard", "soft"] = "hard"
    """``soft`` is SalUn-soft: no mask; after each step the change from the original is soft-thresholded, so that the
    smallest changes are zero: a share 1 - ``share`` of all weights at first, falling linearly to none."""
    redraw: bool = True
    """Draw new labels in each epoch."""
    exclusive: bool = True
    """Never draw the true label, as the paper says; the code draws from all K classes."""
    batch_size: int = 64
    """Samples a step, and of the gradients that are summed for the mask."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    schedule: Literal["none", "cosine"] = "none"
    """Learning rate over the run; SFR-on's tuning took a cosine."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode. The code trains in train mode; see ``random_label``."""

    def __post_init__(self) -> None:
        at_least(self, 0, "alpha")
        at_least(self, 1, "batch_size")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self.share}")


@METHODS.register(
    "salun",
    hparams=SalUnHparams,
    label="SalUn",
    paper="arXiv:2310.12508",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2},
    complexity="N_f + E (N_f + N_r)",
    batch_norm="move unless eval_mode",
)
def salun(task: UnlearningTask, hp: SalUnHparams) -> nn.Module:
    """Train on random labels for D_f and true ones for D_r, and change salient weights only (Fan et al. 2024, section
    4: theta_u = m (theta_o + d theta) + (1 - m) theta_o).

    m selects the ``share`` of weights, over all tensors together, with the largest |sum over batches of the gradient
    of the batch's mean loss on D_f| at theta_o: samples may cancel in the sum, so it is no Fisher mask. Training is
    that of ``random_label``. Batch norm trains, so its buffers move unless ``eval_mode``; no mask holds buffers.
    Reports ``selected``, the share that the mask selects. Cost: |D_f| + epochs x (|D_f| + |D_r|) sample passes;
    ``soft`` saves the first, ``weighted`` is 2 x epochs x |D_r|.

    Deviations:
        - weights outside the mask are held exactly and wrong labels are never the true ones by default, as in the
          paper; ``freeze: grad_only`` and ``exclusive: false`` are the code that made the published numbers.
        - the mask's gradients are those of plain images; the code augments them, so its mask is random.
        - ``soft`` shrinks towards the original, by a share that falls with every step; the code shrinks towards the
          weights at the start of the epoch, and on CIFAR the share only falls from epoch to epoch.
        - batches of 64 for the code's 256, like the other baselines here.
    """
    model = task.model
    passes: Batches
    options: dict[str, Any] = {"train_mode": not hp.eval_mode}
    if hp.objective == "weighted":
        wrong = relabelled_passes(task, "forget_only", redraw=hp.redraw, exclusive=hp.exclusive)
        others = endless(wrong, hp.batch_size, augment=task.recipe.augment)
        passes, options["loss"] = task.retain, with_others(task.loss, others, hp.alpha, 1.0)
    else:
        passes = relabelled_passes(task, hp.objective, redraw=hp.redraw, exclusive=hp.exclusive)
    if hp.form == "soft":
        options["after_step"] = _Shrinkage(model, 1.0 - hp.share, hp.epochs * passes.steps(hp.batch_size))
        return train(task, model, passes, hp, **options)
    mask = _salient(task, hp)
    task.report({"selected": selected_share(mask)})
    if hp.freeze == "exact":
        held = Frozen(model, mask)
        options["after_step"] = lambda step: held.restore()
    else:
        options["before_step"] = lambda: _mask_gradients(model, mask)
    return train(task, model, passes, hp, **options)


def _salient(task: UnlearningTask, hp: SalUnHparams) -> Tensors:
    def gradients(_: torch.Generator) -> Tensors:
        return summed_gradients(task.model, task.forget.batches(hp.batch_size), task.loss)

    size = {name: g.abs() for name, g in task.once("gradients", gradients, batch_size=hp.batch_size).items()}
    return select_top(size, hp.share)


def _mask_gradients(model: nn.Module, mask: Tensors) -> None:
    for name, p in model.named_parameters():
        if p.grad is not None:
            p.grad *= mask[name]


class _Shrinkage:
    """After step t of T: soft-threshold the change from the weights of now, so that a share still * (1 - (t - 1) / T)
    of all entries does not move at all and the others less by the same amount."""

    def __init__(self, model: nn.Module, still: float, total: int) -> None:
        self.parameters = list(model.parameters())
        self.start = [p.detach().clone() for p in self.parameters]
        self.entries = sum(p.numel() for p in self.parameters)
        self.still, self.total = still, total

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        count = int(self.still * (1.0 - (step - 1) / self.total) * self.entries)
        if count == 0:
            return
        moved = [p - start for p, start in zip(self.parameters, self.start, strict=True)]
        by = torch.cat([m.abs().flatten() for m in moved]).kthvalue(count).values
        for p, start, m in zip(self.parameters, self.start, moved, strict=True):
            p.copy_(torch.where(m.abs() > by, start + m - m.sign() * by, start))

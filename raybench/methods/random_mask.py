"""Random mask: DeepClean with its choice of weights left to chance, the control that says what the choice is worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybench.mechanisms.masking import Tensors, norm_parameters, selected_share
from raybench.mechanisms.selective_reset import reset_and_finetune, select_by_fisher
from raybench.methods.deepclean import DeepCleanHparams
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class RandomMaskHparams(DeepCleanHparams):
    """DeepClean's, with the same meaning and ranges: gamma says how many entries of each tensor are drawn."""

    share: float | None = None
    """Instead of ``gamma`` (set that to null): draw this share of every tensor. Needs no Fisher diagonal, so the
    passes over D_f and D_r for it are saved."""

    def __post_init__(self) -> None:
        if self.share is None:
            super().__post_init__()
            return
        if self.gamma is not None or self.quantile is not None:
            raise ValueError(
                f"share must select alone, got gamma={self.gamma} and quantile={self.quantile} beside it; set both to "
                "null"
            )
        for name in ("share", "cap"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")


@METHODS.register(
    "random_mask",
    hparams=RandomMaskHparams,
    label="Random mask",
    paper="arXiv:2311.10448",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2, "fisher_samples": 100},
    complexity="N_f + N_r + E N_r",
    batch_norm="move unless bn_buffers: freeze",
)
def random_mask(task: UnlearningTask, hp: RandomMaskHparams) -> nn.Module:
    """Control of DeepClean (Shi et al. 2023): as many entries as r_i = I_f,i / I_r,i > gamma selects, at random.

    Of every parameter tensor exactly as many entries as ``deepclean`` with the same settings selects, uniform
    without replacement; then the same reset and the same fine-tuning, so both differ in the choice alone. Of random
    samples I_f and I_r estimate one expectation, so there DeepClean's choice should be little better than this one.
    Batch norm trains, so its buffers move, unless ``bn_buffers: freeze``. Reports ``selected``, the selected share.
    Cost: as ``deepclean``, |D_f| + |D_r| (or ``fisher_samples``) + epochs x |D_r| sample passes; the first two, which
    only count entries, are charged all the same, and with ``share`` they are not made.

    Deviations: none.
    """
    counts = _counts(task, hp)
    mask = {name: _draw(task, p, counts[name]) for name, p in task.model.named_parameters() if name in counts}
    task.report({"selected": selected_share(mask)})
    return reset_and_finetune(task, mask, hp)


def _counts(task: UnlearningTask, hp: RandomMaskHparams) -> dict[str, int]:
    """Parameter name -> how many of its entries to select."""
    if hp.share is None:
        mask: Tensors = select_by_fisher(task, hp)[0]
        return {name: int(chosen.sum()) for name, chosen in mask.items()}
    passed_over = norm_parameters(task.model) if hp.exclude_norm else set()
    share = min(hp.share, hp.cap)
    return {name: round(share * p.numel()) for name, p in task.model.named_parameters() if name not in passed_over}


def _draw(task: UnlearningTask, like: Tensor, count: int) -> Tensor:
    """A mask of the shape of ``like`` with ``count`` entries, uniform without replacement."""
    order = torch.randperm(like.numel(), generator=task.generator, device=task.device)
    mask = torch.zeros(like.numel(), dtype=torch.bool, device=task.device)
    return mask.index_fill_(0, order[:count], True).view(like.shape)

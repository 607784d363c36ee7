"""Weight masks: which entries of a model a method may change, how they are chosen, and how the rest is frozen.

A mask is parameter name -> bool tensor of the parameter's shape, True where the entry is selected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def fisher_ratio(forget: Tensors, retain: Tensors, epsilon: float = 1e-8) -> dict[str, Tensor]:
    """How much more an entry matters to the forget than to the retain data: I_f / (I_r + eps), float64.

    ``eps = epsilon * mean(I_r of the tensor) + 1e-30`` is relative, because both diagonals of a model that fits
    its data are tiny and an absolute constant would decide alone. An entry that matters to neither has ratio 0.
    """
    ratio = {}
    for name, value in forget.items():
        kept = retain[name].double()
        ratio[name] = value.double() / (kept + epsilon * kept.mean() + 1e-30)
    return ratio


def trace_ratio(forget: Tensors, retain: Tensors) -> float:
    """tr I_f / tr I_r: the Fisher ratio of the whole model, the natural unit of the entries' ratios.

    Rounded to float32, like the entries: the last bits of a long sum differ from process to process.
    """
    totals = [sum(float(value.double().sum()) for value in part.values()) for part in (forget, retain)]
    return float(torch.tensor(totals[0] / (totals[1] + 1e-30), dtype=torch.float32))


def top_threshold(score: Tensors, share: float) -> float:
    """The threshold above which lie at most ``share`` of all entries, fewer where scores are equal.

    ``share`` >= 1 gives minus infinity: everything lies above.
    """
    flat = torch.cat([value.flatten() for value in score.values()])
    count = math.floor(share * flat.numel())
    if count >= flat.numel():
        return -math.inf
    return float(flat.kthvalue(flat.numel() - count).values)


def select_top(score: Tensors, share: float) -> dict[str, Tensor]:
    """The entries with the highest scores of all tensors together: ``share`` of all entries, rounded down.

    Exactly so many, among equal scores the first; ``top_threshold`` leaves all of those out.
    """
    flat = torch.cat([value.flatten() for value in score.values()])
    best = flat.sort(descending=True, stable=True).indices[: math.floor(share * flat.numel())]
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, best, True)
    parts = chosen.split([value.numel() for value in score.values()])
    return {name: part.view_as(score[name]) for name, part in zip(score, parts, strict=True)}


def select_above(score: Tensors, threshold: float, cap: float = 1.0) -> dict[str, Tensor]:
    """Entries with a score strictly above ``threshold``, at most the share ``cap`` of each tensor (rounded up).

    Where the cap bites, the highest scores stay; among equal ones the first.
    """
    mask = {}
    for name, value in score.items():
        chosen = value > threshold
        limit = math.ceil(cap * value.numel())
        if int(chosen.sum()) > limit:
            best = value.flatten().sort(descending=True, stable=True).indices[:limit]
            chosen = torch.zeros_like(chosen).flatten().index_fill(0, best, True).view_as(value)
        mask[name] = chosen
    return mask


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the scales and shifts of the normalisation layers."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in model.named_modules()
        if isinstance(layer, NORMS)
        for name, _ in layer.named_parameters(recurse=False)
    }


def selected_share(mask: Tensors) -> float:
    """Selected entries as a fraction of all."""
    return sum(int(m.sum()) for m in mask.values()) / max(1, sum(m.numel() for m in mask.values()))


@torch.no_grad()
def overwrite(model: nn.Module, mask: Tensors, values: Tensors | None = None) -> None:
    """Set the selected entries of ``model`` to those of ``values`` (parameter name -> tensor), or to zero."""
    for name, p in model.named_parameters():
        if name in mask:
            p.copy_(torch.where(mask[name], 0.0 if values is None else values[name], p))


class Frozen:
    """The entries outside a mask, as they are now, to be put back after every step.

    Zeroing gradients does not hold weights still: weight decay and momentum move them all the same. Putting
    them back is exact to the bit whatever the optimiser does. Parameters that the mask does not name are frozen
    as a whole.
    """

    def __init__(self, model: nn.Module, mask: Tensors) -> None:
        self._entries = [
            (p, mask.get(name, torch.zeros_like(p, dtype=torch.bool)), p.detach().clone())
            for name, p in model.named_parameters()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen entries back."""
        for p, free, kept in self._entries:
            p.copy_(torch.where(free, p, kept))

"""Shards and slices of a training set, and the ensemble that is trained on them (SISA).

Bourtoule et al. 2021, arXiv:1912.03817, section IV: data in S disjoint shards of R slices each, one model a shard.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Aggregate = Literal["vote", "mean"]
TIE_BREAK = 0.01  # what the mean probabilities weigh beside the votes: it parts ties, no majority of up to 99 members


class Ensemble(nn.Module):
    """``members`` under one roof: images [n, C, H, W] to logits [n, K], the log of the aggregate's probabilities.

    ``mean`` is the mean of the members' probabilities. ``vote`` is their shares of votes, smoothed by a hundredth of
    that mean, which parts ties and keeps log-probabilities finite. ``weight`` [S] counts what each member weighs
    (a buffer; a member of weight 0 has no say).
    """

    weight: Tensor

    def __init__(self, members: Sequence[nn.Module], aggregate: Aggregate) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.aggregate = aggregate
        self.register_buffer("weight", torch.ones(len(members)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to log-probabilities."""
        log_p = torch.stack([F.log_softmax(member(x).float(), dim=1) for member in self.members])  # [S, n, K]
        share = self.weight / self.weight.sum()
        mean = torch.logsumexp(log_p + share.log()[:, None, None], dim=0)
        if self.aggregate == "mean":
            return mean
        ballots = F.one_hot(log_p.argmax(dim=2), log_p.shape[2]).to(share)
        votes = torch.einsum("s,snk->nk", share, ballots)
        return torch.logaddexp(votes.log(), mean + math.log(TIE_BREAK)) - math.log1p(TIE_BREAK)


def assign(count: int, shards: int, slices: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shard and slice of each of ``count`` samples, int64 [count] each: drawn uniformly, sizes equal but for one.

    ``ValueError`` where a slice would be empty.
    """
    if count < shards * slices:
        raise ValueError(f"{shards} shards of {slices} slices need at least {shards * slices} samples, got {count}")
    order = torch.randperm(count, generator=generator, device=generator.device)
    shard, slice_ = torch.empty_like(order), torch.empty_like(order)
    for s, part in enumerate(order.tensor_split(shards)):
        shard[part] = s
        for r, piece in enumerate(part.tensor_split(slices)):
            slice_[piece] = r
    return shard, slice_


def slice_epochs(epochs: int, slices: int) -> list[int]:
    """Epochs e_r of each cumulative slice: 2 epochs / (R + 1) in whole numbers, so that a sample is seen about as
    often as in ``epochs`` plain ones (section V of the paper; the steps of the running multiple, as its code)."""
    running = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [after - before for before, after in itertools.pairwise(running)]

"""Shards and slices of a training set: trained slice by slice with checkpoints, retrained from where a deletion struck.

Bourtoule et al. 2021, arXiv:1912.03817, section IV: data in S disjoint shards of R slices each, one model a shard.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Split
from raybench.seeding import seeded_globals
from raybench.task import UnlearningTask
from raybench.training import Loss, Recipe, TrainingJob, cross_entropy, fit

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


Begin = Callable[[nn.Module, Split], None]  # (member, the first samples it trains on): what it must know before


def train_slices(
    job: TrainingJob,
    members: Sequence[nn.Module],
    shard: Tensor,
    slice_: Tensor,
    slices: int,
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    begin: Begin | None = None,
) -> dict[str, Tensor]:
    """Train member s on slices 0..r of shard s, for r = 0..slices-1, e_r epochs of ``recipe`` each; the artefacts.

    ``shard`` and ``slice_`` int64 [N] say where each training sample belongs (shard -1: nowhere). Artefacts: these
    two, ``epochs`` e_r [R], the ``seed``, and per slice s/r the weights ``before/s/r/...`` and the state
    ``order/s/r`` of the generator that shuffles, both as they were when that slice began.
    """
    epochs = slice_epochs(recipe.epochs, slices)
    artefacts = {"shard": shard, "slice": slice_, "epochs": torch.tensor(epochs), "seed": torch.tensor(job.seed)}
    order = job.train.generator
    assert order is not None
    for s, member in enumerate(members):
        for r in range(slices):
            artefacts |= {f"before/{s}/{r}/{name}": t.clone() for name, t in member.state_dict().items()}
            artefacts[f"order/{s}/{r}"] = order.get_state()
            part = job.train.subset(((shard == s) & (slice_ <= r)).nonzero().flatten())
            if begin is not None and len(part) and not bool(((shard == s) & (slice_ < r)).any()):
                begin(member, part)
            step = dataclasses.replace(recipe, epochs=epochs[r])
            dataclasses.replace(job, train=part).fit(member, step, loss=loss)
    return artefacts


@dataclass(frozen=True)
class Retrained:
    """A shard that was trained again: its number, and what is left of its samples."""

    shard: int
    left: Split


def retrain_slices(
    task: UnlearningTask,
    members: Sequence[nn.Module],
    recipe: Recipe,
    *,
    loss: Loss,
    begin: Begin | None = None,
    after_shard: Callable[[int, Retrained], None] | None = None,
) -> None:
    """Undo and repeat, in place, what the samples of D_f reached: exactly the training without them.

    In each shard that holds one the member goes back to the checkpoint before the first slice that holds one, and the
    slices from there on train again on what is left, with the order's random numbers as they were. A member whose
    shard is emptied stays at its first weights. ``after_shard(count, which)`` is called after each, counted from 1.
    Reports ``shards_retrained`` and ``slices_retrained``. Options as in ``train_slices``.
    """
    saved: Mapping[str, Tensor] = task.artefacts
    shard, slice_, epochs = saved["shard"].cpu(), saved["slice"].cpu(), saved["epochs"].tolist()
    gone = task.forget_positions.cpu()
    gone = gone[shard[gone] >= 0]
    positions, order = task.retain_positions.cpu().sort()  # the order in which the original training saw them
    touched = shard[gone].unique().tolist()
    retrained = 0
    for count, s in enumerate(touched, 1):
        first = int(slice_[gone[shard[gone] == s]].min())
        head = f"before/{s}/{first}/"
        members[s].load_state_dict({name[len(head) :]: t for name, t in saved.items() if name.startswith(head)})
        part = task.retain.subset(torch.empty(0, dtype=torch.int64))
        for r in range(first, len(epochs)):
            part = task.retain.subset(order[(shard[positions] == s) & (slice_[positions] <= r)])
            if not len(part):
                continue
            shuffle = torch.Generator(device=task.device)
            shuffle.set_state(saved[f"order/{s}/{r}"].cpu())
            if begin is not None and not bool(((shard[positions] == s) & (slice_[positions] < r)).any()):
                begin(members[s], part)
            step = dataclasses.replace(recipe, epochs=epochs[r])
            with seeded_globals(int(saved["seed"]) + 1):  # as ``TrainingJob.fit`` did
                fit(members[s], dataclasses.replace(part, generator=shuffle), step, loss=loss)
            retrained += 1
        if after_shard is not None:
            after_shard(count, Retrained(s, part))
    task.report({"shards_retrained": len(touched), "slices_retrained": retrained})

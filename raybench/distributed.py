"""One training shared by several processes (``torch.distributed``), with checkpoints: the recipe of ``training.fit``,
and its result up to rounding.

Every process draws the same order and the same augmentation from the same generator and takes its part of each batch;
per-sample losses are summed and divided by the size of the whole batch, short last ones too; gradients are summed by
DistributedDataParallel; batch norm sees the whole batch (``raybench.synced_norm``). So each step is the step that one
process would make, but for the order of additions. Dropout is the exception: each process draws its own masks.

A checkpoint (weights, optimiser, generator, epoch, cost) is an entry of the store, at the end of an epoch. A training
that starts again goes on there and ends in the same bits as one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raybench.content_store import ContentStore, state_of
from raybench.data import Batch, Split
from raybench.seeding import content_hash, derive_seed
from raybench.synced_norm import share_batch_norm
from raybench.training import Recipe, fit, make_optimiser

KIND = "checkpoints"


class Share:
    """This process's part of every batch of a split. ``whole``: the samples of the whole batch last handed out."""

    def __init__(self, split: Split, rank: int, world: int) -> None:
        self._split, self._rank, self._world = split, rank, world
        self.whole = 0

    def steps(self, batch_size: int) -> int:
        """Batches of one pass, as for the split."""
        return self._split.steps(batch_size)

    def batches(self, batch_size: int, *, augment: bool = False, shuffle: bool = False) -> Iterator[Batch]:
        """One pass. A short last batch may leave nothing for some processes: their part is empty then."""
        for images, labels in self._split.batches(batch_size, augment=augment, shuffle=shuffle):
            self.whole = len(labels)
            first, end = (self.whole * rank // self._world for rank in (self._rank, self._rank + 1))
            yield images[first:end], labels[first:end]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, whose content ``key`` identifies; no more than ``every_s`` seconds apart."""

    store: ContentStore
    key: str
    every_s: float = 0.0

    def latest(self, epochs: int) -> int:
        """The last epoch with a whole checkpoint; 0 where there is none."""
        there = (e for e in range(epochs, 0, -1) if self.store.has(KIND, self._at(e)))
        return next((e for e in there if self.store.get(KIND, self._at(e)) is not None), 0)

    def load(self, epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and record of an epoch's checkpoint."""
        entry = self.store.get(KIND, self._at(epoch))
        if entry is None:
            raise RuntimeError(f"the checkpoint of epoch {epoch} of training {self.key} is not readable here")
        return entry

    def save(self, epoch: int, tensors: dict[str, Tensor], record: dict[str, Any], older: int) -> None:
        """Write an epoch's checkpoint, then drop that of the ``older`` epoch (0: none)."""
        self.store.put(KIND, self._at(epoch), tensors, record)
        if older:
            self.store.drop(KIND, self._at(older))

    def clear(self, epochs: int) -> None:
        """Drop all that are left, when the model itself is in the store."""
        for epoch in range(1, epochs + 1):
            if self.store.has(KIND, self._at(epoch)):
                self.store.drop(KIND, self._at(epoch))

    def _at(self, epoch: int) -> str:
        return content_hash([self.key, "epoch", epoch], 32)


def fit_shared(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    spent: Callable[[], Sequence[float]] = tuple,
) -> list[float]:
    """``fit`` by all processes of the default group together; each calls this with the same arguments.

    ``model`` is trained in place (its batch norm layers are replaced by synchronised ones of the same names) and is the
    same in all processes at the end. ``seed`` is what dropout draws from, with the epoch and the process. ``spent()``
    is what this process has spent on the training so far; returns its sum over the processes, with that of the runs
    before a resume.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    if recipe.batch_size < world:
        raise ValueError(
            f"a batch must have a sample for each of {world} processes, got batch_size {recipe.batch_size}"
        )
    device = next(model.parameters()).device
    share_batch_norm(model)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    optimiser = make_optimiser([p for p in model.parameters() if p.requires_grad], recipe)
    done, before = _resume(model, optimiser, split, checkpoints, recipe.epochs, device)
    share = Share(split, rank, world)
    ddp = DistributedDataParallel(model)
    cost, saved, since = before, done, time.monotonic()

    def after_epoch(epoch: int) -> None:
        nonlocal cost, saved, since
        now = torch.tensor(list(spent()), dtype=torch.float64, device=device)
        dist.all_reduce(now)
        torch.manual_seed(derive_seed("dropout", seed, epoch + 1, rank))
        cost = [a + b for a, b in zip(before or [0.0] * len(now), now.tolist(), strict=True)]
        if rank != 0 or checkpoints is None or epoch == recipe.epochs:
            return
        if time.monotonic() - since >= checkpoints.every_s:
            checkpoints.save(epoch, *_state(model, optimiser, split, cost), older=saved)
            saved, since = epoch, time.monotonic()

    torch.manual_seed(derive_seed("dropout", seed, done + 1, rank))
    fit(
        ddp,
        share,
        recipe,
        objective=lambda losses: losses.sum() * (world / share.whole),  # the processes' gradients are averaged
        parameters=model.parameters(),
        after_epoch=after_epoch,
        optimiser=optimiser,
        first_epoch=done + 1,
    )
    return cost


def _state(
    model: nn.Module, optimiser: torch.optim.Optimizer, split: Split, cost: list[float]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint holds."""
    tensors = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": t for name, t in state.items() if isinstance(t, Tensor)}
    assert split.generator is not None
    return tensors | {"generator": split.generator.get_state()}, {"cost": cost}


def _resume(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    split: Split,
    checkpoints: Checkpoints | None,
    epochs: int,
    device: torch.device,
) -> tuple[int, list[float]]:
    """Go back to the last checkpoint: the epochs that are done, and what they cost. The first process decides which
    one, so that all take the same."""
    if checkpoints is None:
        return 0, []
    chosen = torch.tensor([checkpoints.latest(epochs) if dist.get_rank() == 0 else 0], device=device)
    dist.broadcast(chosen, src=0)
    done = int(chosen)
    if done == 0:
        return 0, []
    tensors, record = checkpoints.load(done)
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    assert split.generator is not None
    split.generator.set_state(tensors["generator"])
    return done, list(record["cost"])

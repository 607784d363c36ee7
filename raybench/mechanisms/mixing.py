"""Two data sets in one step: batches of a second split beside those of the split that is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.training import Loss


def endless(split: Split, batch_size: int, *, augment: bool = False) -> Iterator[Batch]:
    """Batches of one shuffled pass after another, without end. Nothing is drawn before the first is asked for."""
    if len(split) == 0:
        raise ValueError("batches without end need at least one sample, got an empty split")
    while True:
        yield from split.batches(batch_size, augment=augment, shuffle=True)


def with_others(loss: Loss, others: Iterator[Batch], weight: float, other_weight: float) -> Loss:
    """Per-sample losses [n] of a batch B whose mean is  weight * mean loss(B) + other_weight * mean loss(B'),
    with B' the next of ``others``. The two go through the model one after the other, each in a pass of its own."""

    def both(model: nn.Module, batch: Batch) -> Tensor:
        return weight * loss(model, batch) + other_weight * loss(model, next(others)).mean()

    return both

"""Several data sets in one training: one after the other in each pass, or a batch of each in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybench.data import Batch, Batches, Split
from raybench.training import Loss


@dataclass(frozen=True)
class Passes:
    """Splits that are trained on one after the other. ``parts()`` is called at the start of every pass, so labels or
    images may be drawn anew; ``sizes`` are the samples of each part, the same in all passes."""

    sizes: tuple[int, ...]
    parts: Callable[[], Sequence[Split]]

    def steps(self, batch_size: int) -> int:
        """Batches of one pass; each part may end with a short one."""
        return sum(-(-size // batch_size) for size in self.sizes)

    def batches(self, batch_size: int, *, augment: bool = False, shuffle: bool = False) -> Iterator[Batch]:
        """One pass; ``shuffle`` draws an order within each part."""
        for part in self.parts():
            yield from part.batches(batch_size, augment=augment, shuffle=shuffle)


@dataclass(frozen=True)
class Mixture:
    """Splits shuffled into one, each with its own augmentation (made images have none) and image type.

    The first one's generator draws the order. Like ``Split.joined``, without copies.
    """

    parts: tuple[Split, ...]

    def steps(self, batch_size: int) -> int:
        """Batches of one pass."""
        return -(-sum(map(len, self.parts)) // batch_size)

    def batches(self, batch_size: int, *, augment: bool = False, shuffle: bool = False) -> Iterator[Batch]:
        """One pass. Within a batch the samples stand part by part."""
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        draw = self.parts[0].generator if shuffle else None
        order = torch.arange(ends[-1]) if draw is None else torch.randperm(ends[-1], generator=draw, device=draw.device)
        for rows in order.split(batch_size) if len(order) else ():  # splitting nothing gives one empty batch
            shown: list[Batch] = []
            for part, start, end in zip(self.parts, starts, ends, strict=True):
                own = rows[(rows >= start) & (rows < end)] - start
                shown += part.subset(own).batches(batch_size, augment=augment)
            images, labels = zip(*shown, strict=True)
            yield torch.cat(images), torch.cat(labels)


def endless(split: Batches, batch_size: int, *, augment: bool = False) -> Iterator[Batch]:
    """Batches of one shuffled pass after another, without end. Nothing is drawn before the first is asked for."""
    if split.steps(batch_size) == 0:
        raise ValueError("batches without end need at least one sample, got an empty split")
    while True:
        yield from split.batches(batch_size, augment=augment, shuffle=True)


def with_others(loss: Loss, others: Iterator[Batch], weight: float, other_weight: float) -> Loss:
    """Per-sample losses [n] of a batch B whose mean is  weight * mean loss(B) + other_weight * mean loss(B'),
    with B' the next of ``others``. The two go through the model one after the other, each in a pass of its own."""

    def both(model: nn.Module, batch: Batch) -> Tensor:
        return weight * loss(model, batch) + other_weight * loss(model, next(others)).mean()

    return both

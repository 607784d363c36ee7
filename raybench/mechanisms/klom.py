"""KLoM: KL divergence between the margins that many unlearned and many retrained models give to one example.

Georgiev, Rinberg et al. 2024 (arXiv:2410.23232, ICLR 2025). The margin is ``worlds.logit_statistic``.

Deviation from the authors' code: the largest margin counts in the last bin, where the code lets it fall outside.

An estimate: with m models per side two *identical* worlds give about 0.35 (m = 100) and 0.15 (m = 200) nats, so a value
is read beside ``worlds.gold_vs_gold`` at the same m.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.worlds import require_worlds

BINS = 20
CLIP = 100.0
FLOOR = 1e-5  # share of an empty retrained bin
LEAST_MODELS = 10


class Klom(NamedTuple):
    """KLoM over a set of examples, in nats, from 0 to ln(1 / floor) = 11.5."""

    mean: float
    percentile_95: float


def klom(unlearned: Tensor, gold: Tensor, bins: int = BINS, floor: float = FLOOR) -> Tensor:
    """KL(unlearned || retrained) per example, float64 [n], nats, lower is better, from margins [m, n] and [k, n].

    Margins are clipped to [-100, 100] and binned, example by example, into ``bins`` equal bins over the range of both
    worlds together. An example with one margin everywhere has 0. Raises ``MetricUnavailable`` for fewer than 10 models
    on a side (100 is usual), NaN, constant margins.
    """
    unlearned, gold = require_worlds(unlearned, gold, LEAST_MODELS)
    unlearned, gold = unlearned.clamp(-CLIP, CLIP), gold.clamp(-CLIP, CLIP)
    low = torch.minimum(unlearned.amin(dim=0), gold.amin(dim=0))
    width = torch.maximum(unlearned.amax(dim=0), gold.amax(dim=0)) - low
    p = _histogram(unlearned, low, width, bins)
    q = _histogram(gold, low, width, bins)
    terms = torch.where(p > 0, p * (p / q.clamp_min(floor)).log(), 0.0)
    # An empty bin of q is lifted without taking the share from the others, so the sum may fall just below zero.
    return terms.sum(dim=1).clamp_min(0.0)


def summarise(values: Tensor) -> Klom:
    """Mean and 95th percentile (linear interpolation) of ``klom`` values [n]."""
    if values.numel() == 0:
        raise MetricUnavailable("KLoM of no example")
    return Klom(float(values.mean()), float(torch.quantile(values, 0.95)))


def _histogram(world: Tensor, low: Tensor, width: Tensor, bins: int) -> Tensor:
    """Shares of the models per bin, float64 [n, bins]."""
    models, count = world.shape
    place = (world - low) / torch.where(width > 0, width, 1.0) * bins
    index = place.long().clamp(0, bins - 1) + bins * torch.arange(count)
    return torch.bincount(index.flatten(), minlength=count * bins).view(count, bins).double() / models

"""Both worlds as tensors of phi: what the attacks on pools of models see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.outputs import Outputs, Worlds

MATCHED = "the unlearned and the retrained models of the pool"


def phi_of(worlds: Worlds, split: str) -> tuple[Tensor, Tensor]:
    """phi of a split in both worlds, float64 [m, n] and [k, n] (``mechanisms.worlds``)."""
    return _stack(worlds.unlearned, split), _stack(worlds.gold, split)


def mean_accuracy(world: Sequence[Outputs], split: str) -> float:
    """Accuracy on a split, averaged over the models of a world."""
    return float(torch.tensor([float(outputs[split].correct.double().mean()) for outputs in world]).mean())


def _stack(world: Sequence[Outputs], split: str) -> Tensor:
    if not world:
        raise MetricUnavailable("needs worlds of models, got none; set oracles in the spec")
    return torch.stack([outputs[split].phi for outputs in world])

"""Wrong labels on purpose: the targets of methods that teach a model other answers for what it should forget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_labels(
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    exclusive: bool = True,
    barred: Sequence[int] = (),
) -> Tensor:
    """Labels [n] drawn uniformly from the classes outside ``barred`` and, if ``exclusive``, other than ``labels`` [n].

    Not exclusive, a share of 1/K keeps its true label. ``ValueError`` where no class is left to draw.
    """
    weights = torch.ones(len(labels), num_classes, device=labels.device)
    weights[:, list(barred)] = 0.0
    if exclusive:
        weights.scatter_(1, labels[:, None], 0.0)
    if len(labels) == 0:
        return labels.clone()
    if not bool((weights.sum(1) > 0.0).all()):
        raise ValueError(f"random labels must have a class to be drawn from, got {num_classes} classes and {barred=}")
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)

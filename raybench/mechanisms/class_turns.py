"""Samples in small groups of one class, the classes in turn."""

from __future__ import annotations

import torch
from torch import Tensor


def class_turns(labels: Tensor, size: int) -> list[Tensor]:
    """Positions in ``labels`` [n], in groups of at most ``size`` of one class: the classes take turns, so that a cap on
    the number of groups leaves out none of them."""
    parts = [torch.nonzero(labels == label).flatten().split(size) for label in labels.unique()]
    longest = max(len(part) for part in parts)
    return [part[turn] for turn in range(longest) for part in parts if turn < len(part)]

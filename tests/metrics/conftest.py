"""Toy outputs for the metrics: random logits, and logits with chosen probabilities or correctness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raybench.conformance.metrics import toy_context, toy_outputs
from raybench.outputs import MetricContext, Outputs, SplitOutputs


@pytest.fixture
def random_outputs() -> Callable[..., Outputs]:
    """``(seed, forget_class=False)`` -> outputs of an untrained-looking model; the labels do not depend on the seed."""
    return toy_outputs


@pytest.fixture
def context() -> Callable[..., MetricContext]:
    """``(forget_class=False, **changes)`` -> the context that belongs to ``random_outputs``."""

    return toy_context


@pytest.fixture
def with_accuracy() -> Callable[[int, int], SplitOutputs]:
    """``(right, total)`` -> a split of two classes where exactly ``right`` predictions are correct."""

    def make(right: int, total: int) -> SplitOutputs:
        labels = (torch.arange(total) >= right).long()
        logits = torch.tensor([1.0, 0.0]).repeat(total, 1) + torch.linspace(0, 0.5, total)[:, None] * torch.tensor(
            [1.0, 0.0]
        )
        return SplitOutputs(logits, labels)

    return make


@pytest.fixture
def from_probabilities() -> Callable[[list[list[float]]], Outputs]:
    """Rows of probabilities -> outputs whose forget split has them (label 0)."""

    def make(rows: list[list[float]]) -> Outputs:
        p = torch.tensor(rows, dtype=torch.float64)
        return Outputs({"forget": SplitOutputs(p.log(), torch.zeros(len(rows), dtype=torch.int64))})

    return make

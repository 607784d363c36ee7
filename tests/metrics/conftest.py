"""Toy outputs for the metrics: random logits, and logits with chosen probabilities or correctness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raybench.outputs import MetricContext, Outputs, SplitOutputs

SIZES = {"retain": 400, "forget": 150, "validation": 160, "test": 300}
FORGOTTEN = {"validation_forgotten": 120, "test_forgotten": 140}
CLASSES = 5


def toy_outputs(seed: int, forget_class: bool = False) -> Outputs:
    draw, splits = torch.Generator().manual_seed(seed), {}
    for place, (name, size) in enumerate({**SIZES, **(FORGOTTEN if forget_class else {})}.items()):
        labels = torch.randint(CLASSES - 1, (size,), generator=torch.Generator().manual_seed(place))
        if forget_class and ("forget" in name):
            labels = torch.full((size,), CLASSES - 1)
        logits = 2 * torch.randn(size, CLASSES, generator=draw)
        logits[torch.arange(size), labels] += 1.0 + (name == "retain")
        splits[name] = SplitOutputs(logits, labels)
    return Outputs(splits)


@pytest.fixture
def random_outputs() -> Callable[..., Outputs]:
    """``(seed, forget_class=False)`` -> outputs of an untrained-looking model; the labels do not depend on the seed."""
    return toy_outputs


@pytest.fixture
def context() -> Callable[..., MetricContext]:
    """``(forget_class=False, **changes)`` -> the context that belongs to ``random_outputs``."""

    def make(forget_class: bool = False, **changes: object) -> MetricContext:
        classes = (CLASSES - 1,) if forget_class else ()
        oracles = [toy_outputs(seed, forget_class) for seed in (101, 102, 103)]
        extras = {f"original_{split}_accuracy": 0.5 for split in ("retain", "validation", "test")}
        changes = {"extras": extras, "oracles": lambda: oracles} | changes
        return MetricContext(num_classes=CLASSES, forget_classes=classes, **changes)  # type: ignore[arg-type]

    return make


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

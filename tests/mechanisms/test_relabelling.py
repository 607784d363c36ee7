"""Wrong labels on purpose."""

from __future__ import annotations

import pytest
import torch

from raybench.mechanisms.relabelling import random_labels


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_tenth_collides_unless_exclusive() -> None:
    labels = torch.randint(0, 10, (100_000,), generator=draw(1))
    free = random_labels(labels, 10, draw(), exclusive=False)
    assert float((free == labels).double().mean()) == pytest.approx(0.1, abs=0.002)
    other = random_labels(labels, 10, draw())
    assert not bool((other == labels).any())
    counts = torch.bincount((other - labels) % 10, minlength=10)[1:].double()
    assert float((counts / 100_000 - 1 / 9).abs().max()) < 0.004


def test_barred_classes_are_never_drawn() -> None:
    drawn = random_labels(torch.full((1000,), 2), 5, draw(), barred=(0, 3))
    assert set(drawn.tolist()) == {1, 4}


def test_no_class_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="must have a class"):
        random_labels(torch.zeros(3, dtype=torch.int64), 2, draw(), barred=(1,))


def test_no_samples_no_labels() -> None:
    assert random_labels(torch.zeros(0, dtype=torch.int64), 3, draw()).shape == (0,)

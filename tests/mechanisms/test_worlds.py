"""The statistic phi, the bootstrap over models and gold-against-gold ceilings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.worlds import gold_vs_gold, logit_statistic, over_models, require_worlds


def test_phi_equals_the_log_odds_of_the_softmax() -> None:
    logits = torch.randn(3, 20, 10, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(20) % 10
    p = logits.softmax(-1)[:, torch.arange(20), labels]
    np.testing.assert_allclose(logit_statistic(logits, labels), torch.log(p / (1 - p)), rtol=1e-10)


def test_phi_does_not_saturate_and_does_not_depend_on_the_batch() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]])
    phi = logit_statistic(logits, torch.tensor([0, 0]))
    assert phi.tolist() == pytest.approx([200 - math.log(2), -200 - math.log(2)])
    many = torch.randn(300, 10, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(300) % 10
    pieces = [logit_statistic(many[i : i + 64], labels[i : i + 64]) for i in range(0, 300, 64)]
    assert torch.equal(torch.cat(pieces), logit_statistic(many, labels))
    with pytest.raises(MetricUnavailable, match="two classes"):
        logit_statistic(many[:, :1], labels)


def test_the_interval_covers_the_truth_and_a_constant_has_none() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        folds = rng.normal(size=(16, 1)) + rng.normal(size=(1, 16)) + rng.normal(size=(16, 16))
        found = over_models(torch.from_numpy(folds), seed=0, draws=300)
        assert found.value == pytest.approx(folds.mean())
        covered += found.lo < 0 < found.hi
    assert 86 <= covered <= 100  # 95 % nominal
    assert over_models(torch.full((4, 5), 0.5), seed=0) == (0.5, 0.5, 0.5)


def test_the_interval_depends_on_the_seed_and_not_on_the_order() -> None:
    folds = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)).double()
    one = over_models(folds, seed=4)
    assert over_models(folds[torch.randperm(6)][:, torch.randperm(9)], seed=4) == one
    assert over_models(folds, seed=5) != one


def test_gold_against_gold_splits_without_overlap() -> None:
    seen: list[set[float]] = []

    def statistic(first: Tensor, second: Tensor) -> float:
        left, right = set(first[:, 0].tolist()), set(second[:, 0].tolist())
        assert not left & right
        seen.append(left)
        return float(len(left) + 10 * len(right))

    gold = torch.arange(9.0)[:, None].repeat(1, 3)
    assert gold_vs_gold(statistic, gold, seed=0, splits=5) == (44.0, 0.0, 4)
    assert len({frozenset(left) for left in seen}) > 1
    assert gold_vs_gold(statistic, gold, seed=0, splits=1, size=2) == (22.0, 0.0, 2)
    with pytest.raises(MetricUnavailable, match="needs 10, got 9"):
        gold_vs_gold(statistic, gold, seed=0, size=5)
    with pytest.raises(MetricUnavailable, match="got 1"):
        gold_vs_gold(statistic, gold[:1], seed=0)


def test_worlds_of_different_examples_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="same examples, got 3 and 4"):
        require_worlds(torch.rand(5, 3), torch.rand(5, 4), least=2)
    with pytest.raises(ValueError, match="shape"):
        require_worlds(torch.rand(5), torch.rand(5, 4), least=2)

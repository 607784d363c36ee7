"""The challenge score against the specification's numbers and a direct search over a grid of thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.mechanisms.challenge import (
    CAP,
    epsilon,
    epsilons,
    final_score,
    forgetting_quality,
    points,
)
from raybench.mechanisms.worlds import gold_vs_gold


def normal(seed: int, *shape: int, mean: float = 0.0, sd: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, sd, shape))


def number(fpr: float, fnr: float) -> float:
    return epsilon(torch.tensor(fpr, dtype=torch.float64), torch.tensor(fnr, dtype=torch.float64)).item()


def test_epsilon_of_the_specification() -> None:
    assert number(0.1, 0.1) == pytest.approx(2.197213, abs=5e-7)
    assert number(0.05, 0.2) == pytest.approx(2.772576, abs=5e-7)
    assert number(0.2, 0.05) == number(0.05, 0.2)
    assert number(0.5, 0.5) == pytest.approx(0.0, abs=1e-4)
    assert number(1 / 512, 1 / 512) == pytest.approx(6.236360, abs=5e-7)
    assert number(0.0, 0.0) == math.inf
    assert math.isnan(number(0.0, 0.3))
    assert math.isnan(number(0.3, 0.0))
    assert number(1.0, 1.0) == 0.0  # worse than chance certifies nothing in this direction
    assert number(1.0, 0.5) == 0.0


def test_points_of_the_specification() -> None:
    values = torch.tensor([0.2, 0.7, 2.3, 8.0])
    assert points(values, 512).tolist() == [1.0, 0.5, 0.0625, 0.0]
    assert points(values, 512).mean().item() == 0.390625


def test_buckets_end_where_the_models_end() -> None:
    # ceil(ln 511) = 7: fourteen buckets, the last [6.5, 7). ceil(ln 31) = 4: eight.
    assert points(torch.tensor([6.99, 7.0]), 512).tolist() == [0.5**13, 0.0]
    assert points(torch.tensor([0.5, 3.99, 4.0, CAP]), 32).tolist() == [0.5, 0.5**7, 0.0, 0.0]
    with pytest.raises(MetricUnavailable, match="fewer than 3 models, got 2"):
        points(torch.tensor([0.1]), 2)


def on_a_grid(unlearned: np.ndarray, gold: np.ndarray) -> float:
    """The organisers' definition for one example, threshold by threshold, 100 per unit of phi."""
    spans = [side.max() - side.min() for side in (unlearned, gold)]
    if min(spans) / max(spans) < 0.01:
        return CAP
    positive, negative = (gold, unlearned) if np.median(gold) > np.median(unlearned) else (unlearned, gold)
    found = [0.0]

    def judge(fnr: np.ndarray, fpr: np.ndarray) -> None:
        for miss, alarm in {(a, b) for a, b in zip(fnr.tolist(), fpr.tolist(), strict=True)}:
            if miss == 0 and alarm == 0:
                found.append(CAP)
            elif miss > 0 and alarm > 0:
                for one, other in ((miss, alarm), (alarm, miss)):
                    if 1 - 1e-5 - one > 0:
                        found.append(math.log(1 - 1e-5 - one) - math.log(other))

    both = np.concatenate([unlearned, gold])
    cuts = np.linspace(both.min(), both.max(), math.ceil((both.max() - both.min()) * 100))
    judge((positive[:, None] < cuts).mean(axis=0), (negative[:, None] >= cuts).mean(axis=0))

    narrow, wide = (positive, negative) if np.ptp(positive) < np.ptp(negative) else (negative, positive)
    width = np.ptp(narrow)
    low, high = narrow.max() - 2.0, narrow.max() + 2.0
    for right in np.linspace(low, high, math.ceil((high - low) * 100)):
        left = np.linspace(right - width - 2.0, right - width + 2.0, 400)

        def inside(side: np.ndarray, left: np.ndarray = left, right: float = right) -> np.ndarray:
            return ((side[:, None] >= left) & (side[:, None] <= right)).mean(axis=0)

        judge(1 - inside(narrow), inside(wide))
    return min(max(found), CAP)


def test_equals_a_grid_search_up_to_its_resolution() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for x in range(24):
        models = 9 if x % 2 else 12
        # Gaps of at least 0.04 between values, so that a grid of 0.01 meets every one of them.
        slots = rng.permutation(160)[: 2 * models] * 0.05 + rng.uniform(0, 0.01, 2 * models)
        unlearned, gold = slots[:models] * rng.choice([0.5, 1.0, 1.5]) + rng.choice([0, 2.0]), slots[models:]
        exact = epsilons(torch.from_numpy(unlearned)[:, None], torch.from_numpy(gold)[:, None]).item()
        grid = on_a_grid(unlearned, gold)
        assert exact >= grid - 1e-9, x
        cases.append((exact, grid))
    equal = sum(abs(a - b) < 1e-9 for a, b in cases)
    assert equal >= 22, cases
    assert len({round(b, 3) for _, b in cases}) > 6


def test_interval_rule_sees_what_one_threshold_cannot() -> None:
    """Same median, one world inside the other: 16 of 16 narrow models and 4 of 16 wide ones in the middle."""
    gold = torch.cat([torch.linspace(-9, -5, 6), torch.tensor([-0.5, -0.1, 0.1, 0.5]), torch.linspace(5, 9, 6)])
    narrow = torch.linspace(-1, 1, 16)
    # Cutting off one narrow model leaves fnr 1/16 and fpr 4/16: the best that is not discarded. A second cut removes
    # no wide model until the sixth.
    expected = max(math.log((1 - 1e-5 - 1 / 16) / (4 / 16)), math.log((1 - 1e-5 - 4 / 16) / (1 / 16)))
    assert epsilons(narrow[:, None], gold[:, None]).item() == pytest.approx(expected)
    assert epsilons(gold[:, None], narrow[:, None]).item() == pytest.approx(expected)


def test_cap_and_degenerate_examples() -> None:
    models = 10
    apart = normal(1, models, 1)
    assert epsilons(apart + 100, apart).item() == CAP  # perfect separation
    # A world in one spike, with a model of the other inside it: no attack is perfect, the ratio of the ranges decides.
    wide = torch.linspace(-5, 5, 11)[1:, None].double()
    spike = torch.linspace(-1, 1, 10)[:, None].double()
    assert epsilons(0.01 * spike, wide).item() == CAP
    assert epsilons(wide, 0.01 * spike).item() == CAP
    assert epsilons(0.05 * spike, wide).item() == pytest.approx(2.197213, abs=5e-7)  # 0.1 / 9: one in ten on each side
    same = torch.full((models, 1), 2.0, dtype=torch.float64)
    pair = torch.cat([same, apart], dim=1), torch.cat([same, apart], dim=1)
    found = epsilons(*pair)
    assert found[0] == 0.0  # all models agree: nothing to tell apart
    both_still = epsilons(torch.cat([same, apart], 1), torch.cat([same + 1, apart], 1))
    assert both_still[0] == CAP  # agree within a world, differ between them


def test_identical_worlds_and_their_ceiling() -> None:
    """The maximum over thresholds is biased: F of two draws from one world is far from 1."""
    gold = normal(2, 128, 60)
    ceilings = [gold_vs_gold(forgetting_quality, gold, seed=0, splits=3, size=size) for size in (16, 64)]
    assert [c.models for c in ceilings] == [16, 64]
    assert [c.mean for c in ceilings] == pytest.approx([0.175, 0.178], abs=0.03)
    moved = forgetting_quality(normal(3, 64, 60, mean=2.0), normal(4, 64, 60))
    assert moved < ceilings[1].mean / 2
    world = normal(5, 32, 10)
    assert epsilons(world, world).max() < math.log(2)  # the very same models: nothing but the interval's slack


def test_order_and_batch_do_not_matter() -> None:
    unlearned, gold = normal(6, 20, 70, mean=0.5), normal(7, 24, 70)
    whole = epsilons(unlearned, gold)
    columns = torch.randperm(70)
    assert torch.equal(
        epsilons(unlearned[torch.randperm(20)][:, columns], gold[torch.randperm(24)][:, columns]), whole[columns]
    )
    parts = [epsilons(unlearned[:, i : i + 9], gold[:, i : i + 9]) for i in range(0, 70, 9)]
    assert torch.equal(torch.cat(parts), whole)
    # Swapping the worlds swaps the two error rates, in which the formula is symmetric.
    torch.testing.assert_close(epsilons(gold, unlearned), whole, rtol=1e-12, atol=1e-12)


def test_quality_uses_the_smaller_world_and_the_final_score_multiplies() -> None:
    unlearned, gold = normal(8, 16, 30), normal(9, 40, 30)
    assert forgetting_quality(unlearned, gold) == pytest.approx(points(epsilons(unlearned, gold), 16).mean().item())
    assert final_score(0.390625, (0.98, 1.0), (0.9, 0.9)) == pytest.approx(0.390625 * 0.98)
    with pytest.raises(MetricUnavailable, match="positive"):
        final_score(0.5, (0.9, 0.0), (0.9, 0.9))


def test_bad_input() -> None:
    world = normal(10, 9, 4)
    with pytest.raises(MetricUnavailable, match="at least 8 unlearned models, got 7"):
        epsilons(world[:7], world)
    with pytest.raises(MetricUnavailable, match="NaN"):
        epsilons(world, world * math.nan)
    with pytest.raises(MetricUnavailable, match="constant"):
        epsilons(torch.zeros(9, 4), torch.zeros(9, 4))

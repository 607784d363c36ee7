"""Attacks where there is nothing to find (metrics.md section 13, number 7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raybench.metrics.loss_attack import FALSE_POSITIVE_RATE, LOW_FALSE_POSITIVE_RATE
from raybench.outputs import Outputs, SplitOutputs
from raybench.registry import METRICS, WHOLE_WORLDS

SEEDS = 12
# One more than the false alarms allowed among n unseen samples, of n + 1: where a random loss falls among theirs.
RATES = {
    "loss_attack_tpr": FALSE_POSITIVE_RATE,
    "loss_attack_tpr_permille": LOW_FALSE_POSITIVE_RATE,
    "lira_tpr": FALSE_POSITIVE_RATE,
}
# The only one whose chance is at an end of its range.
ONE_SIDED = "indiscernibility"
# Its scores have few steps, so that ties at the threshold keep it below chance.
TIED = "rmia_tpr"
# Those on whole worlds of models have test_worlds.py.
OURS = [
    e
    for e in METRICS
    if e.attack is not None and not e.pair and e.pool not in WHOLE_WORLDS and e.fn.__module__.startswith("raybench.")
]
ATTACKS = [e.name for e in OURS if e.name != TIED]


def parts_of_one_set(seed: int, size: int) -> Outputs:
    """Splits drawn from one distribution of logits and labels; the labels do not depend on the seed."""
    draw, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    splits = {}
    for name in ("retain", "forget", "test", "validation"):
        labels = torch.randint(4, (size,), generator=same)
        logits = torch.randn(size, 4, generator=draw)
        logits[torch.arange(size), labels] += 1.0
        splits[name] = SplitOutputs(logits, labels)
    return Outputs(splits)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != ONE_SIDED])
def test_halves_of_one_set_give_chance(name, context) -> None:
    size = 1001 if name in RATES else 301
    pool = [parts_of_one_set(SEEDS + s, size) for s in range(3)]
    where = [context(evaluate_seed=s, oracles=lambda: pool) for s in range(SEEDS)]
    values = [METRICS[name].fn(parts_of_one_set(s, size), where[s]) for s in range(SEEDS)]
    chance = (int(RATES[name] * size) + 1) / (size + 1) if name in RATES else 0.5
    error = float(np.std(values, ddof=1)) / math.sqrt(SEEDS)
    assert 0 < error < 0.15
    assert abs(np.mean(values) - chance) < 3 * error


def test_halves_of_one_set_are_indiscernible(context) -> None:
    values = [METRICS[ONE_SIDED].fn(parts_of_one_set(s, 1001), context(evaluate_seed=s)) for s in range(3)]
    assert all(1 - value < 3 * math.sqrt(0.25 / 200) / 0.5 for value in values)  # 200 test decisions a split

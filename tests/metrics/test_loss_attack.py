"""Which samples the loss attack compares, and which way it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from raybench.errors import MetricUnavailable
from raybench.metrics.loss_attack import (
    loss_attack_accuracy,
    loss_attack_auc,
    loss_attack_balanced_accuracy,
    loss_attack_tpr,
    loss_attack_tpr_permille,
)
from raybench.outputs import Outputs, SplitOutputs


def with_margins(mean: float, size: int, seed: int) -> SplitOutputs:
    """Two classes, label 0, logit margin N(mean, 1): the loss is a falling function of the margin."""
    margin = torch.from_numpy(np.random.default_rng(seed).normal(mean, 1.0, size)).float()
    return SplitOutputs(torch.stack([margin, torch.zeros(size)], dim=1), torch.zeros(size, dtype=torch.int64))


def test_auc_of_gaussian_margins(context) -> None:
    outputs = Outputs({"forget": with_margins(1.0, 3000, 0), "test": with_margins(0.0, 3000, 1)})
    expected = norm.cdf(1 / math.sqrt(2))
    assert abs(loss_attack_auc(outputs, context()) - expected) < 3 * math.sqrt(expected * (1 - expected) / 3000)


def test_balanced_accuracy_at_the_mean_training_loss(context) -> None:
    splits = {"retain": with_margins(2.0, 3000, 10), "forget": with_margins(1.0, 3000, 11)}
    outputs = Outputs({**splits, "test": with_margins(0.0, 3000, 12)})
    # softplus(-margin) is below the threshold where the margin is above this one.
    margin = -math.log(math.expm1(float(outputs["retain"].losses.mean())))
    expected = (norm.sf(margin - 1.0) + norm.cdf(margin)) / 2
    assert expected > 0.6
    assert abs(loss_attack_balanced_accuracy(outputs, context()) - expected) < 3 * math.sqrt(0.5 / 3000) / 2


def test_tpr_at_one_in_a_thousand(context) -> None:
    outputs = Outputs({"forget": with_margins(2.0, 20_000, 13), "test": with_margins(0.0, 20_000, 14)})
    members, others = (-outputs[n].losses.numpy() for n in ("forget", "test"))
    found = np.mean(members > np.sort(others)[-21])  # 20 of 20 000 may be accused
    assert loss_attack_tpr_permille(outputs, context()) == pytest.approx(found, abs=1e-12)
    assert 0.05 < found < 0.25  # closed form: norm.sf(norm.isf(0.001) - 2) = 0.138
    few = Outputs({"forget": with_margins(2.0, 50, 13), "test": with_margins(0.0, 999, 14)})
    with pytest.raises(MetricUnavailable, match="at least 1000 non-members, got 999"):
        loss_attack_tpr_permille(few, context())


@pytest.mark.parametrize("held_out", ["validation", "test"])
@pytest.mark.parametrize("forget_class", [False, True])
def test_the_unseen_side_is_matched_to_the_forget_set(held_out, forget_class, random_outputs, context) -> None:
    outputs = random_outputs(4, forget_class)
    members, others = outputs["forget"], outputs[f"{held_out}_forgotten" if forget_class else held_out]
    score = -torch.cat([members.losses, others.losses]).numpy()
    expected = roc_auc_score(np.repeat([1, 0], [len(members), len(others)]), score)
    assert loss_attack_auc(outputs, context(forget_class, held_out=held_out)) == pytest.approx(expected, abs=1e-12)


def test_two_halves_of_one_set_are_indistinguishable(context) -> None:
    # metrics.md section 13, number 7.
    outputs = Outputs({"forget": with_margins(0.5, 2000, 2), "test": with_margins(0.5, 2000, 3)})
    assert abs(loss_attack_auc(outputs, context()) - 0.5) < 3 * math.sqrt(1 / (12 * 1000))
    assert abs(loss_attack_accuracy(outputs, context()) - 0.5) < 3 * math.sqrt(0.25 / 400)
    # One hundredth of each; the threshold itself is the 20th of 2000 non-members.
    assert abs(loss_attack_tpr(outputs, context()) - 0.01) < 3 * math.sqrt(2 * 0.01 * 0.99 / 2000)


def test_over_forgetting_reads_below_one_half(context) -> None:
    outputs = Outputs({"forget": with_margins(-2.0, 500, 4), "test": with_margins(1.0, 500, 5)})
    assert loss_attack_auc(outputs, context()) < 0.05
    assert loss_attack_accuracy(outputs, context()) > 0.9
    assert loss_attack_tpr(outputs, context()) < 0.01


def test_the_evaluate_seed_reaches_the_splits(context) -> None:
    outputs = Outputs({"forget": with_margins(0.3, 200, 6), "test": with_margins(0.0, 300, 7)})
    assert len({loss_attack_accuracy(outputs, context(evaluate_seed=s)) for s in range(4)}) > 1


def test_no_unseen_sample_of_the_class_has_a_reason(context) -> None:
    outputs = Outputs({"forget": with_margins(0.0, 50, 8), "test": with_margins(0.0, 50, 9)})
    for metric in (loss_attack_auc, loss_attack_accuracy, loss_attack_tpr):
        with pytest.raises(MetricUnavailable, match="test_forgotten"):
            metric(outputs, context(True))
    with pytest.raises(MetricUnavailable, match="at least 100 non-members, got 50"):
        loss_attack_tpr(outputs, context())

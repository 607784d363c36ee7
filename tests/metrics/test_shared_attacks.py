"""Attacks that several metrics take are run once for each model, and never mixed up between questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raybench.evaluation import measure
from raybench.metrics import DEFAULT_METRICS, _features, loss_attack
from raybench.metrics._features import confidences, entropies, share_judged_non_member
from raybench.metrics.loss_attack import loss_attack_accuracy
from raybench.outputs import MetricContext, Outputs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the costly attacks, in the order in which they are really run."""
    ran: list[str] = []

    def counted(module: Any, name: str) -> None:
        attack = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: ran.append(name) or attack(*args, **kwargs))

    counted(_features, "judged_non_member")
    counted(loss_attack, "attack_accuracy")
    return ran


def test_the_default_set_runs_each_costly_attack_once_a_model(
    random_outputs: Callable[..., Outputs], context: Callable[..., MetricContext], calls: list[str]
) -> None:
    """``confidence_attack`` and ``average_gap`` share one; the retrained model's are there for the next row."""
    ours, gold = random_outputs(1), random_outputs(2)
    columns, _ = measure(DEFAULT_METRICS, ours, gold, context())
    assert sorted(calls) == ["attack_accuracy"] * 2 + ["judged_non_member"] * 2
    calls.clear()
    measure(DEFAULT_METRICS, random_outputs(3), gold, context())
    assert sorted(calls) == ["attack_accuracy", "judged_non_member"]
    again, _ = measure(DEFAULT_METRICS, random_outputs(1), random_outputs(2), context())
    assert again == columns


def test_another_question_is_another_attack(
    random_outputs: Callable[..., Outputs], context: Callable[..., MetricContext], calls: list[str]
) -> None:
    outputs = random_outputs(1, True)
    asked = [context(True), context(True, held_out="validation"), context(True, evaluate_seed=1)]
    for feature in (confidences, entropies):
        for where in (*asked, *asked):
            fresh = share_judged_non_member(random_outputs(1, True), where, feature)
            assert share_judged_non_member(outputs, where, feature) == fresh
    assert calls.count("judged_non_member") == 2 * (6 + 3)
    for where in (*asked, context(False), context(True)):
        assert loss_attack_accuracy(outputs, where) == loss_attack_accuracy(random_outputs(1, True), where)
    assert calls.count("attack_accuracy") == 5 + 4

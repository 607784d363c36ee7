"""The ranked distance: its terms, its splits, and that nothing is ever left out of it silently."""

from __future__ import annotations

import pytest

from raybench.errors import MetricUnavailable
from raybench.metrics.distance import TERMS, distance, distance_terms, distance_validation
from raybench.outputs import Outputs, SplitOutputs


def without(outputs: Outputs, *names: str) -> Outputs:
    return Outputs({name: split for name, split in outputs.items() if name not in names})


def replaced(outputs: Outputs, **splits: SplitOutputs) -> Outputs:
    return Outputs({**{name: outputs[name] for name in outputs}, **splits})


def test_mean_of_four_known_gaps(with_accuracy, random_outputs, context) -> None:
    base = random_outputs(0)
    ours = replaced(base, retain=with_accuracy(99, 100), test=with_accuracy(90, 100), validation=with_accuracy(80, 100))
    gold = replaced(base, retain=with_accuracy(95, 100), test=with_accuracy(92, 100), validation=with_accuracy(70, 100))
    for held_out, gap, metric in (("test", 0.02, distance), ("validation", 0.10, distance_validation)):
        terms = distance_terms(ours, gold, context(), held_out)
        assert tuple(terms) == tuple(name for name, _ in TERMS)
        assert terms["retain_accuracy"] == pytest.approx(0.04, abs=1e-12)
        assert terms["forget_accuracy"] == 0.0
        assert terms["held_out_accuracy"] == pytest.approx(gap, abs=1e-12)
        assert 0 < terms["loss_attack_auc"] < 1
        assert metric(ours, gold, context()) == pytest.approx(sum(terms.values()) / 4, abs=1e-15)


@pytest.mark.parametrize("forget_class", [False, True])
def test_exactly_zero_for_the_retrained_model(forget_class, random_outputs, context) -> None:
    facts = context(forget_class)
    assert distance(random_outputs(1, forget_class), random_outputs(1, forget_class), facts) == 0.0
    assert distance_validation(random_outputs(1, forget_class), random_outputs(1, forget_class), facts) == 0.0
    assert distance(random_outputs(1, forget_class), random_outputs(2, forget_class), facts) > 0.0


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_the_validation_distance_ignores_the_test_set_whatever_the_phase(held_out, random_outputs, context) -> None:
    ours, gold, facts = random_outputs(1, True), random_outputs(2, True), context(True, held_out=held_out)
    test_splits = ("test", "test_forgotten")
    value = distance_validation(ours, gold, facts)
    assert value == distance_validation(without(ours, *test_splits), without(gold, *test_splits), facts)
    other = random_outputs(3, True)
    moved = replaced(ours, validation_forgotten=other["validation_forgotten"])
    assert distance_validation(moved, gold, facts) != value, "the attack compares with the forgotten classes"
    validation_splits = ("validation", "validation_forgotten")
    assert distance(ours, gold, facts) == distance(
        without(ours, *validation_splits), without(gold, *validation_splits), facts
    )


@pytest.mark.parametrize("split", ["retain", "forget", "test", "test_forgotten"])
def test_a_missing_term_makes_the_whole_unavailable(split, random_outputs, context) -> None:
    whole, part = random_outputs(1, True), without(random_outputs(2, True), split)
    for pair in ((whole, part), (part, whole)):
        with pytest.raises(MetricUnavailable, match=split):
            distance(*pair, context(True))


def test_an_attack_that_cannot_run_makes_the_whole_unavailable(random_outputs, context) -> None:
    ours = random_outputs(1, True)
    single = SplitOutputs(ours["test_forgotten"].logits[:1], ours["test_forgotten"].labels[:1])
    with pytest.raises(MetricUnavailable, match="at least 2 non-members, got 1"):
        distance(replaced(ours, test_forgotten=single), random_outputs(2, True), context(True))

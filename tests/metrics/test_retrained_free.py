"""The retrained-free objective: closed forms per kind of request, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.metrics.distance import distance_validation
from raybench.metrics.retrained_free import retrained_free
from raybench.outputs import MetricContext, Outputs, SplitOutputs

ORIGINAL = {"original_retain_accuracy": 1.0, "original_validation_accuracy": 0.9}


def facts(classes: int = 2, forgotten: tuple[int, ...] = (), **extras: float) -> MetricContext:
    return MetricContext(classes, "validation", forgotten, extras=ORIGINAL | extras)


def sure(right: int, total: int, p: float = 0.9, classes: int = 2, label: int = 0) -> SplitOutputs:
    """``right`` of ``total`` samples give the label the probability ``p``, the others give it to the next class."""
    labels = torch.full((total,), label)
    top = torch.where(torch.arange(total) < right, labels, (labels + 1) % classes)
    rest = (1 - p) / (classes - 1)
    probabilities = torch.full((total, classes), rest).scatter(1, top[:, None], p)
    return SplitOutputs(probabilities.log(), labels)


def test_random_samples_by_hand() -> None:
    outputs = Outputs({"retain": sure(95, 100), "validation": sure(80, 100), "forget": sure(97, 100)})
    # Losses: 97 low and 3 high against 80 low and 20 high; ties count one half.
    auc = 0.97 * 0.20 + 0.5 * (0.97 * 0.80 + 0.03 * 0.20)
    expected = ((1.0 - 0.95) + (0.9 - 0.8) + (0.97 - 0.80) + (auc - 0.5)) / 4
    assert retrained_free(outputs, facts()) == pytest.approx(expected, abs=1e-12)


def test_better_than_the_original_is_no_fault() -> None:
    better = {"retain": sure(100, 100), "validation": sure(95, 100), "forget": sure(95, 100)}
    assert retrained_free(Outputs(better), facts()) == 0.0
    for right in (85, 100):  # forgetting more than a model that has never seen D_f is a gap too
        assert retrained_free(Outputs(better | {"forget": sure(right, 100)}), facts()) > 0.0


def test_a_class_is_to_be_unknown() -> None:
    kept = {"retain": sure(100, 100), "validation": sure(90, 100)}
    gone = {"forget": sure(30, 100, label=1), "validation_forgotten": sure(10, 50, label=1)}
    auc = 0.3 * 0.8 + 0.5 * (0.3 * 0.2 + 0.7 * 0.8)
    expected = (0.0 + 0.0 + 0.3 + (auc - 0.5)) / 4
    assert retrained_free(Outputs(kept | gone), facts(forgotten=(1,))) == pytest.approx(expected, abs=1e-12)


def test_wrong_labels_are_expected_to_be_answered_like_other_wrong_labels() -> None:
    """Three classes, validation right in 90 of 100: a wrong label is answered in 0.1 / 2 of the cases. With p = 0.8
    on the top class the losses of wrong labels are high (0.1), but for the half of the 10 wrong samples' labels that
    is their top class."""
    outputs = Outputs(
        {
            "retain": sure(100, 100, 0.8, 3),
            "validation": sure(90, 100, 0.8, 3),
            "forget": sure(20, 100, 0.8, 3),
        }
    )
    low = 10 / 200  # of the unseen (sample, wrong label) pairs
    auc = 0.2 * (1 - low) + 0.5 * (0.2 * low + 0.8 * (1 - low))
    expected = (0.0 + 0.0 + (0.2 - 0.05) + (auc - 0.5)) / 4
    where = facts(3, forget_labels_replaced=1.0)
    assert retrained_free(outputs, where) == pytest.approx(expected, abs=1e-9)
    assert retrained_free(outputs, facts(3)) > 0.25  # taken for random samples, forgotten wrong labels look like a loss


def test_replaced_images_have_a_reason(random_outputs: Callable[..., Outputs]) -> None:
    with pytest.raises(MetricUnavailable, match="changed the images of D_f"):
        retrained_free(random_outputs(1), facts(5, forget_images_replaced=1.0))


@pytest.mark.parametrize("split", ["retain", "validation"])
def test_without_the_original_there_is_a_reason(random_outputs: Callable[..., Outputs], split: str) -> None:
    extras = {key: value for key, value in ORIGINAL.items() if split not in key}
    with pytest.raises(MetricUnavailable, match=f"the original model's {split} accuracy"):
        retrained_free(random_outputs(1), MetricContext(5, "validation", extras=extras))


@pytest.mark.parametrize("forget_class", [False, True])
def test_it_never_looks_at_the_test_set(random_outputs: Callable[..., Outputs], forget_class: bool) -> None:
    outputs, forgotten = random_outputs(1, forget_class), (4,) if forget_class else ()
    bare = Outputs({name: split for name, split in outputs.items() if not name.startswith("test")})
    values = {
        retrained_free(seen, MetricContext(5, held_out, forgotten, extras=ORIGINAL))
        for seen, held_out in ((outputs, "test"), (outputs, "validation"), (bare, "test"), (bare, "validation"))
    }
    assert len(values) == 1


def test_it_is_the_distance_where_the_retrained_model_is_as_expected() -> None:
    """A retrained model with the original's accuracies, and D_f like its unseen samples: both numbers are one."""
    retrained = Outputs({"retain": sure(100, 100), "validation": sure(90, 100), "forget": sure(90, 100)})
    assert retrained_free(retrained, facts()) == 0.0
    for right in (60, 90, 100):
        # Only the forget set and the retain set move: the unseen accuracy, which the target is, stays.
        ours = Outputs({"retain": sure(80, 100), "validation": sure(90, 100), "forget": sure(right, 100)})
        assert retrained_free(ours, facts()) == pytest.approx(distance_validation(ours, retrained, facts()), abs=1e-12)

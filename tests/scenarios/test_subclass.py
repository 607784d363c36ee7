from __future__ import annotations

import numpy as np
import pytest

from raybench.data import RawData, Source
from raybench.errors import UserError
from raybench.experiment import make_experiment
from raybench.problem import draw_request
from raybench.registry import SAMPLE, SCENARIOS
from raybench.scenarios.subclass import SubclassParams
from raybench.spec import Choice, ProblemSpec

FINE = np.arange(60) % 6
LABELS = FINE // 2  # subclasses 0 and 1 make superclass 0, and so on
NAMES = ("rocket", "tank", "apple", "pear", "oak", "palm")
IMAGES = np.zeros((60, 1, 4, 4), dtype=np.uint8)


def ask(subclasses, source=Source("made", np.arange(60), 60, FINE, NAMES)):  # noqa: B008 (frozen, never written)
    entry = SCENARIOS["subclass"]
    return entry.fn(IMAGES, LABELS, 3, entry.params(subclasses=subclasses), np.random.default_rng(0), source)


@pytest.mark.parametrize(("given", "gone"), [(2, [2]), ("apple", [2]), ([0, "pear"], [0, 3]), (["tank"], [1])])
def test_all_samples_of_the_subclasses_and_no_other(given, gone):
    request = ask(given)
    np.testing.assert_array_equal(request.forget, np.isin(FINE, gone))
    assert (request.forget_classes, request.labels, SCENARIOS["subclass"].kind) == ((), None, SAMPLE)


def test_errors():
    with pytest.raises(UserError, match="must be those of made, got 'rockets'; did you mean rocket"):
        ask(["rockets"])
    with pytest.raises(UserError, match="must be those of made, got 9; it has 6, such as rocket"):
        ask([9])
    with pytest.raises(UserError, match="must leave a part of each superclass, got all subclasses of 1; name fewer"):
        ask(["apple", "pear"])
    with pytest.raises(
        UserError, match=r"must have a dataset with subclasses \(cifar20\), got digits; use scenario cl"
    ):
        ask([0], Source("digits", np.arange(60), 60))


@pytest.mark.parametrize("given", [[], [1, 1], [-1], [True], [1.5], None])
def test_params(given):
    with pytest.raises(ValueError, match="subclasses must be distinct names or numbers from 0, at least one, got"):
        SubclassParams(subclasses=given)


def test_the_harness_hands_the_subclasses_of_the_training_split():
    raw = RawData("made", IMAGES, LABELS, IMAGES[:6], LABELS[:6], 3, (0.5,), (0.5,), fine=FINE, fine_names=NAMES)
    train = np.flatnonzero(np.arange(60) % 7)
    spec = ProblemSpec(Choice("digits"), "c", Choice("mlp"), Choice("subclass", {"subclasses": ["pear"]}), {}, 0)
    np.testing.assert_array_equal(draw_request(spec, raw, train).forget, FINE[train] == 3)


def test_a_spec_takes_names_and_numbers():
    spec = {"name": "s", "methods": ["finetune"]}
    spec["problems"] = [
        {"dataset": "cifar20", "models": ["resnet8"], "scenarios": [{"subclass": {"subclasses": ["rocket", 3]}}]}
    ]
    (cell,) = make_experiment(spec).cells
    assert cell.scenario.label == "subclass(subclasses=rocket+3)"

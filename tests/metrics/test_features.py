"""What the attacks of the l1-sparse family see, and that each sees its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.svm import SVC

from raybench.errors import MetricUnavailable
from raybench.metrics import _features as features
from raybench.metrics.confidence_attack import confidence_attack
from raybench.metrics.correctness_attack import correctness_attack
from raybench.metrics.entropy_attack import entropy_attack
from raybench.metrics.modified_entropy_attack import modified_entropy_attack
from raybench.metrics.probability_attack import probability_attack
from raybench.outputs import Outputs, SplitOutputs
from raybench.registry import METRICS

FAMILY = {
    confidence_attack: features.confidences,
    correctness_attack: features.correctness,
    entropy_attack: features.entropies,
    modified_entropy_attack: features.modified_entropies,
    probability_attack: features.probabilities,
}


def of(rows: list[list[float]], labels: list[int]) -> SplitOutputs:
    return SplitOutputs(torch.tensor(rows, dtype=torch.float64).log(), torch.tensor(labels))


def test_modified_entropy_is_that_of_its_paper() -> None:
    # metrics.md section 13, number 5, with the value of the code that logs p for 1 - p in every column.
    p = np.array([0.7, 0.2, 0.1])
    value = float(features.modified_entropies(of([p.tolist()], [0])))
    assert value == pytest.approx(0.162167, abs=5e-7)
    assert -((1 - p) * np.log(p)).sum() == pytest.approx(3.466879, abs=5e-7)


def test_modified_entropy_does_not_depend_on_the_batch() -> None:
    # The code's label indexing overwrites the columns of *all* labels in the batch.
    rows, labels = [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], [0, 0, 2]
    together = features.modified_entropies(of(rows, labels))
    alone = [float(features.modified_entropies(of([row], [label]))) for row, label in zip(rows, labels, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-15)


def test_modified_entropy_of_very_sure_models() -> None:
    # p_0 = 1 - 2 e^-40 but for a relative 1e-17; in float64, 1 - p_0 is 0.
    logits, tail = torch.tensor([[40.0, 0.0, 0.0]] * 2, dtype=torch.float64), 2 * math.exp(-40)
    right, wrong = features.modified_entropies(SplitOutputs(logits, torch.tensor([0, 1]))).tolist()
    assert right == pytest.approx(tail * tail + 2 * (tail / 2) ** 2, rel=1e-9)
    assert wrong == pytest.approx(40 + (40 - math.log(2)), rel=1e-12)
    assert features.modified_entropies(of([[0.0, 1.0], [1.0, 0.0]], [0, 0])).tolist() == [100.0, 0.0]


def test_entropies_against_scipy(random_outputs) -> None:
    split = random_outputs(1)["forget"]
    expected = entropy(split.probabilities.numpy(), axis=1)
    np.testing.assert_allclose(features.entropies(split).numpy(), expected, atol=1e-12)
    assert features.entropies(of([[1.0, 0.0, 0.0], [1 / 3] * 3], [1, 1])).tolist() == pytest.approx([0.0, math.log(3)])


@pytest.mark.parametrize("held_out", ["validation", "test"])
@pytest.mark.parametrize("metric", FAMILY, ids=lambda metric: metric.__name__)
def test_each_attack_is_a_machine_fitted_on_its_own_feature(metric, held_out, random_outputs, context) -> None:
    outputs = random_outputs(4, True)
    size = len(outputs[held_out])
    outputs = Outputs({**outputs, "retain": SplitOutputs(*(x[:size] for x in vars_of(outputs["retain"])))})
    columns = {
        n: FAMILY[metric](outputs[n]).reshape(len(outputs[n]), -1).numpy() for n in ("retain", "forget", held_out)
    }
    fit = np.concatenate([columns["retain"], columns[held_out]])
    judge = SVC(C=3, kernel="rbf", gamma=1 / fit.shape[1]).fit(fit, np.repeat([1, 0], size))
    expected = np.mean(judge.predict(columns["forget"]) == 0)
    assert metric(outputs, context(True, held_out=held_out)) == pytest.approx(expected, abs=1e-12)


def vars_of(split: SplitOutputs) -> tuple[torch.Tensor, torch.Tensor]:
    return split.logits, split.labels


@pytest.mark.parametrize("metric", FAMILY, ids=lambda metric: metric.__name__)
def test_reasons(metric, context) -> None:
    same = of([[0.5, 0.5]] * 30, [0] * 30)
    with pytest.raises(MetricUnavailable, match="constant"):
        metric(Outputs({"retain": same, "forget": same, "test": same}), context())
    with pytest.raises(MetricUnavailable, match="at least 2 non-members, got 1"):
        metric(Outputs({"retain": same, "forget": same, "test": of([[0.5, 0.5]], [0])}), context())


def test_an_excluded_class_is_judged_too(context) -> None:
    # All of D_f has p_y = 0, as after a class is switched off: infinite losses, but a value.
    retain, test = of([[0.9, 0.05, 0.05]] * 20 + [[0.8, 0.1, 0.1]] * 20, [0] * 40), of([[0.1, 0.1, 0.8]] * 40, [0] * 40)
    outputs = Outputs({"retain": retain, "test": test, "forget": of([[0.0, 0.3, 0.7]] * 10, [0] * 10)})
    for metric in FAMILY:
        assert metric(outputs, context()) in (0.0, 1.0)


def test_the_records_differ_in_the_score_alone() -> None:
    records = [METRICS[metric.__name__].attack for metric in FAMILY]
    assert len({record.score for record in records}) == len(FAMILY)
    assert len({(r.attack, r.fit_on, r.apply_to, r.reported_quantity) for r in records}) == 1

"""Entropy regression against scikit-learn, and its orientation: a share of members."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression

from raybench.metrics.entropy_regression import entropy_regression
from raybench.outputs import Outputs, SplitOutputs


def sure(p: float, size: int) -> SplitOutputs:
    """Two classes, *wrong* label, largest probability about ``p``."""
    top = torch.linspace(p - 0.02, p + 0.02, size, dtype=torch.float64)
    return SplitOutputs(torch.stack([top.log(), (1 - top).log()], dim=1), torch.ones(size, dtype=torch.int64))


def test_high_means_member_and_labels_do_not_matter(context) -> None:
    for forget, expected in ((sure(0.97, 50), 1.0), (sure(0.6, 50), 0.0)):
        outputs = Outputs({"retain": sure(0.97, 900), "test": sure(0.6, 100), "forget": forget})
        assert entropy_regression(outputs, context()) == expected


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_against_scikit_learn(held_out, random_outputs, context) -> None:
    outputs = random_outputs(3, True)
    feature = {n: entropy(outputs[n].probabilities.numpy(), axis=1)[:, None] for n in ("retain", "forget", held_out)}
    label = np.repeat([1, 0], [len(feature["retain"]), len(feature[held_out])])
    judge = LogisticRegression(class_weight="balanced").fit(
        np.concatenate([feature["retain"], feature[held_out]]), label
    )
    expected = judge.predict(feature["forget"]).mean()
    assert 0.1 < expected < 0.9
    assert entropy_regression(outputs, context(True, held_out=held_out)) == pytest.approx(expected, abs=1e-12)

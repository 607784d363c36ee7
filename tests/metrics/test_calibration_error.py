"""Expected calibration error by hand and against a loop over the bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybench.metrics.calibration_error import calibration_error
from raybench.outputs import Outputs, SplitOutputs


def split_of(confidence: list[float], right: list[bool]) -> SplitOutputs:
    """Two classes, class 0 predicted with the given probability (at least one half)."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return SplitOutputs(torch.stack([p.log(), (1 - p).log()], dim=1), torch.tensor([0 if r else 1 for r in right]))


def test_by_hand(context) -> None:
    # Bins of width 1/15: 0.61 and 0.65 share (9/15, 10/15]; 0.95 and 1.0 share (14/15, 1]; 0.70 is alone.
    test = split_of([0.61, 0.65, 0.95, 1.0, 0.70], [True, False, True, True, False])
    # 2/5 |1/2 - 0.63| + 2/5 |1 - 0.975| + 1/5 |0 - 0.70|
    assert calibration_error(Outputs({"test": test}), context()) == pytest.approx(0.052 + 0.01 + 0.14, abs=1e-12)


def test_an_edge_belongs_to_the_bin_below(context) -> None:
    # 0.8 = 12/15 shares (11/15, 12/15] with 0.75, not (12/15, 13/15] with 0.85.
    edge = float(torch.linspace(0, 1, 16, dtype=torch.float64)[12])
    for partner, together in ((0.75, True), (0.85, False)):
        value = calibration_error(Outputs({"test": split_of([edge, partner], [True, False])}), context())
        alone = ((1 - edge) + partner) / 2
        assert value == pytest.approx(abs(1 - edge - partner) / 2 if together else alone, abs=1e-12)


def test_against_a_loop_over_the_bins(random_outputs, context) -> None:
    for held_out in ("test", "validation"):
        split = random_outputs(5)[held_out]
        confidence, right = split.probabilities.numpy().max(axis=1), split.correct.numpy()
        expected = 0.0
        for i in range(15):
            inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        value = calibration_error(random_outputs(5), context(held_out=held_out))
        assert value == pytest.approx(expected, abs=1e-12)
        assert value > 0.01


def test_a_calibrated_model_has_almost_none(context) -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 200_000)
    right = rng.uniform(size=len(confidence)) < confidence
    value = calibration_error(Outputs({"test": split_of(confidence.tolist(), right.tolist())}), context())
    assert value < 8 * np.sqrt(0.25 / 25_000)  # eight filled bins, each off by about its standard error

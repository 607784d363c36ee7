"""The original comes back untouched."""

from __future__ import annotations

import torch

from raybench.testing import make_bench, make_task, run_method


def test_weights_are_the_original_ones() -> None:
    bench = make_bench("mlp")
    task = make_task("original", bench=bench)
    model = run_method("original", task)
    assert model is task.model
    expected = bench.original.model.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in model.state_dict().items())
    assert model is not bench.original.model

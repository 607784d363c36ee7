"""Retraining: a new network, the recipe, the retain set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import RECIPE, make_task, run_method


def accuracy(model: nn.Module, bench_task: UnlearningTask, part: str) -> float:
    images, labels = bench_task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_forgets_the_class_and_learns_the_rest() -> None:
    task = make_task("retrain", model="mlp")
    model = run_method("retrain", task)
    assert accuracy(model, task, FORGET) == 0.0
    assert accuracy(model, task, RETAIN) > 0.97
    assert not model.training


def test_new_weights_are_unrelated_to_the_original_ones() -> None:
    """Cosine near 0 for independent draws (a "retrained" model that keeps the body gives nearly 1)."""
    task = make_task("retrain", model="mlp")
    model = run_method("retrain", task)
    ours, theirs = (m.get_parameter("blocks.0.1.weight").detach().flatten() for m in (model, task.model))
    assert abs(float(torch.cosine_similarity(ours, theirs, dim=0))) < 0.2


def test_cost_data_and_seed() -> None:
    task = make_task("retrain", model="mlp")
    model = run_method("retrain", task)
    assert task._passes.forward == pytest.approx(RECIPE.epochs * len(task.retain))
    assert task._passes.backward == pytest.approx(task._passes.forward)
    with pytest.raises(UndeclaredAccess):
        _ = task.forget
    again, other = run_method("retrain", make_task("retrain", model="mlp")), make_task("retrain", model="mlp", seed=1)
    same, different = again.state_dict(), run_method("retrain", other).state_dict()
    assert all(torch.equal(same[key], value) for key, value in model.state_dict().items())
    assert not all(torch.equal(different[key], value) for key, value in model.state_dict().items())


def test_every_epoch_is_a_checkpoint() -> None:
    task = make_task("retrain", model="mlp")
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("retrain", task)
    assert steps == list(range(1, RECIPE.epochs + 1))

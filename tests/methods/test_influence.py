"""Influence: that each curvature forgets, what stays, the length of the step and its cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method

WIDTH = (("width", 8),)


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def vector(model: nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("curvature", "damping", "alpha", "kept"),
    [("woodfisher", 1.0, 0.06, 0.85), ("diagonal", 0.1, 0.15, 0.9), ("kfac", 10.0, 0.35, 0.95)],
)
def test_forgets_the_class_and_keeps_the_rest(curvature: str, damping: float, alpha: float, kept: float) -> None:
    task = make_task("influence")
    model = run_method("influence", task, tiny=False, curvature=curvature, damping=damping, alpha=alpha)
    assert accuracy(model, task, FORGET) < 0.5
    assert accuracy(model, task, RETAIN) > kept


@pytest.mark.parametrize("curvature", ["woodfisher", "diagonal", "kfac"])
def test_length_of_the_step_and_buffers(curvature: str) -> None:
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))
    for unit, alpha in (("relative", 0.02), ("plain", 0.001)):
        task = make_task("influence", bench=bench)
        before, buffers = vector(task.model), {k: b.clone() for k, b in task.model.named_buffers()}
        model = run_method("influence", task, curvature=curvature, unit=unit, alpha=alpha)
        share = float((vector(model) - before).norm() / before.norm())
        expected = alpha if unit == "relative" else alpha * task.reported.scalars["influence_norm"]
        assert share == pytest.approx(expected, rel=1e-2)
        assert all(torch.equal(buffers[key], value) for key, value in model.named_buffers())


@pytest.mark.parametrize(
    ("curvature", "labels", "backward"),
    [("woodfisher", "data", 50), ("diagonal", "data", 50), ("diagonal", "exact", 500)],
)
def test_cost(curvature: str, labels: str, backward: int) -> None:
    task = make_task("influence", model="mlp")
    run_method("influence", task, samples=50, curvature=curvature, labels=labels)
    count = len(task.forget) + len(task.retain)
    assert task._passes.forward == pytest.approx(count + 50)
    assert task._passes.backward == pytest.approx(count + backward, rel=0.1)


def test_refused_settings() -> None:
    with pytest.raises(Exception, match="must be above 0"):
        run_method("influence", damping=0.0)

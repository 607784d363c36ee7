"""LFSSD: importances against autograd one sample at a time, no labels, and that it forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.fisher import fisher_diag
from raybench.methods.lfssd import _squared_length
from raybench.registry import FORGET, RETAIN, VALIDATION
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("fisher", ["batch", "sample"])
def test_forgets_the_class_and_keeps_the_rest(fisher: str) -> None:
    task = make_task("lfssd")
    model = run_method("lfssd", task, fisher=fisher, alpha=3.0, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > 0.93
    assert accuracy(model, task, VALIDATION) > 0.85


def test_importance_is_the_mean_magnitude_of_the_gradient_of_the_squared_length() -> None:
    model = make_bench("mlp").original.model
    images, labels = make_task(model="mlp").forget.subset(torch.arange(6)).tensors()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x in images:
        value = (torch.linalg.vector_norm(model(x[None]), dim=1) ** 2).sum()
        for name, g in zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True):
            total[name] += g.abs() / len(images)
    found = fisher_diag(model, images, labels, loss=_squared_length, power=1)
    for name, expected in total.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_labels_are_not_looked_at() -> None:
    results = []
    for wrong in (False, True):
        task = make_task("lfssd", model="mlp")
        if wrong:
            for part in (FORGET, RETAIN):
                task._splits[part].labels.zero_()
        results.append(run_method("lfssd", task, alpha=3.0).state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_cost() -> None:
    task = make_task("lfssd")
    run_method("lfssd", task, fisher="sample")
    assert task._passes.forward == pytest.approx(2 * len(task.forget) + len(task.retain))

"""Task-vector negation, the control of rewind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.task import UndeclaredAccess
from raybench.testing import make_task, run_method

ONCE = {"rewinds": 1, "warmup_epochs": 0, "augment": False}


def step(coefficient: float, other: float | None = None) -> dict[str, torch.Tensor]:
    """Where one step back leads from the original weights."""
    task = make_task("task_vector")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    model = run_method("task_vector", task, coefficient=coefficient, other=other, **ONCE)
    return {name: (p - before[name]).detach() for name, p in model.named_parameters()}


def test_step_is_the_coefficient_times_the_task_vector() -> None:
    """Against fine-tuning by hand: 14 epochs of Adam, one batch each, and back the other way."""
    task = make_task("task_vector")
    images, labels = task.forget.tensors()
    model, start = task.model, [p.detach().clone() for p in task.model.parameters()]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(14):
        adam.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        adam.step()
    vector = torch.cat([(p - s).detach().flatten() for p, s in zip(model.parameters(), start, strict=True)])
    found = torch.cat([delta.flatten() for delta in step(0.5).values()])
    assert float((found + 0.5 * vector).norm()) < 1e-2 * float(vector.norm())


def test_two_coefficients_go_by_rank() -> None:
    one, two = step(1.0), step(1.25, 0.24)
    for name, delta in one.items():
        wanted = 1.25 if delta.ndim == 4 else 0.24
        assert float((two[name] - wanted * delta).norm()) < 1e-3 * float(delta.norm()), name
    assert {delta.ndim for delta in one.values()} == {1, 2, 4}


def test_forgets_wrong_labels_learnt_by_heart() -> None:
    task = make_task("task_vector", kind="sample")
    images, labels = task.forget.tensors()

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(task.model(images), labels))

    before = loss()
    run_method("task_vector", task, rewinds=3, coefficient=2.0)
    assert loss() > 2 * before


def test_cost_data_and_refusals() -> None:
    task = make_task("task_vector", model="mlp")
    run_method("task_vector", task, rewinds=2, warmup_epochs=2)
    assert task._passes.backward == pytest.approx(2 * 16 * len(task.forget))
    with pytest.raises(UndeclaredAccess):
        _ = task.retain
    with pytest.raises(UserError, match="rewinds must be at least 1, got 0"):
        run_method("task_vector", rewinds=0)

"""Boundary Expand: the spare class comes and goes, and the model forgets."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.methods.boundary_expand import _spare_row
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_with_a_learning_rate_of_zero_nothing_changes() -> None:
    task = make_task("boundary_expand")
    images = task.forget.tensors()[0]
    before, keys = task.model(images).detach(), list(task.model.state_dict())
    model = run_method("boundary_expand", task, lr=0.0)
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == keys


def test_a_step_is_that_of_a_head_with_k_plus_1_rows_that_is_pruned() -> None:
    """Built as the paper has it: a new last layer of K + 1 rows in place of the old."""
    task, lr = make_task("boundary_expand", model="lenet5", samples=300), 0.05
    twin = make_task("boundary_expand", model="lenet5", samples=300)
    wide, spare = copy.deepcopy(task.model), _spare_row(twin)
    head = wide.head
    assert isinstance(head, nn.Linear)
    wider = nn.Linear(head.in_features, 11)
    with torch.no_grad():
        wider.weight.copy_(torch.cat([head.weight, spare.weight]))
        wider.bias.copy_(torch.cat([head.bias, spare.bias]))
    wide.head = wider
    images = task.forget.tensors()[0]
    optimiser = torch.optim.SGD(wide.parameters(), lr, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(wide(images), torch.full((len(images),), 10)).backward()
        optimiser.step()
    model = run_method("boundary_expand", task, lr=lr, epochs=3, batch_size=len(images))
    assert len(model.head.weight) == 10
    for (name, ours), theirs in zip(model.named_parameters(), wide.parameters(), strict=True):
        kept = theirs[:10] if name.startswith("head") else theirs
        assert torch.allclose(ours, kept, atol=1e-6), name


def test_spare_row_is_xavier_normal_with_a_zero_bias() -> None:
    rows = [_spare_row(make_task("boundary_expand", model="mlp", samples=300, seed=seed)) for seed in range(40)]
    spread = float(torch.cat([row.weight for row in rows]).detach().std())
    wanted = math.sqrt(2 / (rows[0].in_features + 11))
    assert spread == pytest.approx(wanted, rel=0.05)
    assert all(float(row.bias.detach()) == 0.0 for row in rows)


def test_the_harness_is_only_shown_models_with_k_outputs() -> None:
    task = make_task("boundary_expand", model="mlp", samples=300)
    shown: list[tuple[int, int]] = []

    def look(model: nn.Module, step: int, scalars: Any) -> None:
        shown.append((step, model(task.forget.tensors()[0]).shape[1]))

    task._on_checkpoint = look
    run_method("boundary_expand", task, epochs=3)
    assert shown == [(1, 10), (2, 10), (3, 10)]
    assert task._passes.backward == pytest.approx(3 * len(task.forget), rel=0.01)
    with pytest.raises(UndeclaredAccess):
        _ = task.retain


def test_forgets_and_keeps() -> None:
    task = make_task("boundary_expand")
    model = run_method("boundary_expand", task, tiny=False, lr=2e-4, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.2
    assert accuracy(model, task, RETAIN) > 0.9


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("boundary_expand", bench=bench)
        before: dict[str, Tensor] = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("boundary_expand", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)

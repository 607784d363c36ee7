"""Boundary Shrink: the labels it teaches, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def taught(monkeypatch: pytest.MonkeyPatch, task: UnlearningTask, **options: Any) -> Tensor:
    """The labels that D_f is trained with."""
    found: list[Tensor] = []

    def fit(model: nn.Module, split: Any, recipe: Any, **_: Any) -> None:
        assert not recipe.augment
        found.append(split.targets)

    monkeypatch.setattr("raybench.mechanisms.finetuning.fit", fit)
    run_method("boundary_shrink", task, **options)
    return found[0]


def test_labels_are_the_originals_answers_to_the_attacked_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the sign of the cross-entropy's gradient, taken by normalised images in float64."""
    task, eps = make_task("boundary_shrink"), 0.2
    model = task.model.double()
    images, labels = task.forget.tensors()
    shown = images.double().requires_grad_(True)
    sign = torch.autograd.grad(F.cross_entropy(model(shown), labels, reduction="sum"), shown)[0].sign()
    pixels = (task.to_pixels(images.double()) + eps * sign).clamp(0.0, 1.0)
    attacked = (pixels * 255).round() / 255
    expected = model(task.from_pixels(attacked)).argmax(1)
    task.model.float()
    labels_taught = taught(monkeypatch, task, eps=eps)
    assert float((labels_taught == expected).float().mean()) > 0.97  # a gradient of zero has no sign
    success = float((labels_taught != labels).float().mean())
    assert success > 0.2
    assert task.reported.scalars["attack_success"] == pytest.approx(success)


def test_without_a_step_every_label_is_the_clean_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("boundary_shrink")
    with torch.no_grad():
        clean = task.model(task.forget.tensors()[0]).argmax(1)
    assert torch.equal(taught(monkeypatch, task, eps=0.0), clean)
    task = make_task("boundary_shrink")
    forced = taught(monkeypatch, task, eps=0.0, force_wrong=True)
    assert not bool((forced == task.forget.targets).any())
    failed = float((clean == task.forget.targets).float().mean())  # forcing is no success of the attack
    assert task.reported.scalars["attack_success"] == pytest.approx(1.0 - failed)


def test_forgets_and_keeps() -> None:
    task = make_task("boundary_shrink")
    model = run_method("boundary_shrink", task, tiny=False, eps=0.2, lr=1e-3, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.2
    assert accuracy(model, task, RETAIN) > 0.9


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("boundary_shrink", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("boundary_shrink", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


def test_cost_data_and_checkpoints() -> None:
    task = make_task("boundary_shrink", model="mlp", samples=300)
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("boundary_shrink", task, epochs=3)
    assert task._passes.forward == pytest.approx(5 * len(task.forget))
    assert 3 * len(task.forget) < task._passes.backward < 4.2 * len(task.forget)
    assert steps == [1, 2, 3]
    with pytest.raises(UndeclaredAccess):
        _ = task.retain

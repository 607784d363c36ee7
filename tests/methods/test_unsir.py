"""UNSIR: the noise and its gradient, labels and sizes of the impair set, the two passes, and that it forgets."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.errors import UserError
from raybench.methods.unsir import UnsirHparams, make_noise, some_per_class
from raybench.registry import CLASS, FORGET, METHODS, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method


def small() -> Bench:
    return make_bench("mlp", samples=300)


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def recorded_fit(monkeypatch: pytest.MonkeyPatch, task: UnlearningTask, **options: Any) -> list[tuple[Any, Any]]:
    """(split, recipe) of the two passes, which are not run."""
    found: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "raybench.mechanisms.finetuning.fit", lambda m, split, recipe, **_: found.append((split, recipe))
    )
    run_method("unsir", task, **options)
    return found


def test_only_classes_are_in_scope_and_no_forget_image_is_needed() -> None:
    assert METHODS["unsir"].scope == {CLASS}
    assert METHODS["unsir"].needs == {RETAIN}


def test_noise_gradient_of_a_linear_model() -> None:
    """-(p - onehot(c)) W / B + 2 lambda n / B, in a first step of Adam on it: its sign decides the step."""
    task, hp = make_task("unsir", bench=small()), UnsirHparams(noise_steps=1, noise_batch=7, penalty=1e-2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    with torch.no_grad():
        linear[1].weight.copy_(0.1 * torch.randn(10, 28 * 28, generator=torch.Generator().manual_seed(1)))
        linear[1].bias.zero_()
    task.model = linear
    draw = torch.Generator()
    draw.set_state(task.generator.get_state())
    start = torch.randn(7, *task.input_shape, generator=draw)
    noise, loss = make_noise(task, hp, 4)
    weight = linear[1].weight.detach()
    p = linear(start).detach().softmax(1)
    p[:, 4] -= 1.0
    gradient = -(p @ weight) / 7 + 2 * 1e-2 * start.flatten(1) / 7
    expected = start.flatten(1) - 0.1 * gradient / (gradient.abs() + 1e-8)
    clear = gradient.abs() > 1e-5  # below, rounding decides the sign that Adam follows
    assert float(clear.float().mean()) > 0.99
    assert torch.allclose(noise.flatten(1)[clear], expected[clear], atol=1e-5)
    assert loss == pytest.approx(float(-(linear(start).detach().log_softmax(1)[:, 4]).mean()), rel=1e-5)


def test_noise_is_far_from_its_class_and_leaves_the_network_alone() -> None:
    task = make_task("unsir", bench=small())
    before = copy.deepcopy(task.model.state_dict())
    _, first = make_noise(task, UnsirHparams(noise_steps=1, noise_batch=32), 0)
    noise, last = make_noise(task, UnsirHparams(noise_batch=32), 0)
    assert last > first + 10.0
    with torch.no_grad():
        assert not bool((task.model(noise).argmax(1) == 0).any())
    assert all(torch.equal(before[key], value) for key, value in task.model.state_dict().items())
    assert all(p.requires_grad for p in task.model.parameters())


def test_train_mode_pollutes_batch_norm_before_anything_is_learned() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))
    for train_mode in (False, True):
        task = make_task("unsir", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        make_noise(task, UnsirHparams(noise_steps=2, noise_batch=8, noise_in_train_mode=train_mode), 0)
        moved = any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())
        assert moved == train_mode


def test_every_noise_image_carries_its_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small()
    bench = dataclasses.replace(bench, facts=dataclasses.replace(bench.facts, forget_classes=(0, 2)))
    task = make_task("unsir", bench=bench)
    made: dict[int, Tensor] = {}

    def keep(task: UnlearningTask, hp: UnsirHparams, label: int) -> tuple[Tensor, float]:
        made[label], loss = make_noise(task, hp, label)
        return made[label], loss

    monkeypatch.setattr("raybench.methods.unsir.make_noise", keep)
    options = {"copies": 3, "noise_batch": 6, "noise_used": 4, "retain_per_class": 5}
    (impair, first), (repair, second) = recorded_fit(monkeypatch, task, impair_lr=0.004, repair_lr=0.003, **options)
    images, labels = impair.tensors()
    kept = len(repair)
    assert kept == 5 * 9  # class 2 stands in for a second forget class: its images are still in this D_r
    assert len(labels) == kept + 2 * 3 * 4
    for at, label in enumerate((0, 2)):
        part = slice(kept + 12 * at, kept + 12 * (at + 1))
        assert bool((labels[part] == label).all())
        assert torch.allclose(images[part], made[label][:4].repeat(3, 1, 1, 1), atol=1e-4)
    assert torch.allclose(images[:kept], repair.tensors()[0], atol=1e-5)
    assert (first.lr, second.lr, first.epochs, second.epochs) == (0.004, 0.003, 1, 1)
    assert {first.optimiser, second.optimiser} == {"adam"}
    assert not first.augment
    assert not second.augment


def test_subset_has_so_many_of_each_class() -> None:
    task = make_task("unsir", bench=small())
    found = some_per_class(task.retain, 7, torch.Generator().manual_seed(0))
    assert found.targets.bincount().tolist() == [0] + [7] * 9
    assert len(some_per_class(task.retain, 1000, task.generator)) == len(task.retain)


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("unsir")
    options = {"impair_lr": 1e-2, "repair_lr": 3e-3, "copies": 4, "noise_batch": 64, "batch_size": 64}
    model = run_method("unsir", task, tiny=False, **options)
    assert accuracy(model, task, FORGET) < 0.2
    assert accuracy(model, task, RETAIN) > 0.9
    assert task.reported.scalars["noise_loss"] > 10.0


def test_sizes_must_be_positive() -> None:
    with pytest.raises(UserError, match="noise_steps must be at least 1, got 0"):
        run_method("unsir", make_task("unsir", bench=small()), noise_steps=0)

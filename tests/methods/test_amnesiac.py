"""Amnesiac unlearning by relabelling: one draw of labels, and its kinship with random label."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.registry import CLASS, FORGET, RETAIN, SAMPLE
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("kind", [CLASS, SAMPLE])
def test_each_forget_sample_has_one_wrong_label_throughout(kind: str) -> None:
    task = make_task("amnesiac", model="mlp", samples=300, kind=kind)
    seen: dict[bytes, set[int]] = {}

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        for image, label in zip(*batch, strict=True):
            seen.setdefault(image.numpy().tobytes(), set()).add(int(label))
        losses: Tensor = model(batch[0]).sum(1) * 0.0
        return losses

    task._loss = loss
    run_method("amnesiac", task, epochs=3)
    for image, label in zip(*task.forget.tensors(), strict=True):
        given = seen[image.numpy().tobytes()]
        assert len(given) == 1
        assert int(label) not in given
        assert not given & set(task.forget_classes)
    for image, label in zip(*task.retain.tensors(), strict=True):
        assert seen[image.numpy().tobytes()] == {int(label)}


def test_is_random_label_mixed_and_drawn_once() -> None:
    """One class is forgotten, so drawing from the others and from the remaining classes is one thing."""
    common: dict[str, Any] = {"lr": 0.01, "epochs": 2, "batch_size": 32, "weight_decay": 0.0}
    bench = make_bench("mlp", samples=300)
    ours = run_method("amnesiac", make_task("amnesiac", bench=bench), optimiser="sgd", **common)
    task = make_task("random_label", bench=bench)
    other = run_method("random_label", task, variant="mix", redraw=False, **common)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))


def test_the_first_step_is_adams() -> None:
    """Of every weight with a gradient: lr times its sign."""
    task, lr = make_task("amnesiac", model="mlp", samples=300), 1e-3
    before = torch.nn.utils.parameters_to_vector(task.model.parameters()).detach()
    model = run_method("amnesiac", task, lr=lr, epochs=1, batch_size=10_000)
    moved = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before).abs()
    assert float(moved.max()) == pytest.approx(lr, rel=1e-2)
    assert float((moved > 0.9 * lr).float().mean()) > 0.1


def test_forgets_and_keeps_with_the_defaults() -> None:
    task = make_task("amnesiac")
    model = run_method("amnesiac", task, tiny=False)
    assert accuracy(model, task, FORGET) < 0.3
    assert accuracy(model, task, RETAIN) > 0.95


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("amnesiac", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("amnesiac", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


def test_cost_and_checkpoints() -> None:
    task = make_task("amnesiac", model="mlp", samples=300)
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("amnesiac", task, epochs=3)
    assert task._passes.backward == pytest.approx(3 * (len(task.forget) + len(task.retain)))
    assert steps == [1, 2, 3]

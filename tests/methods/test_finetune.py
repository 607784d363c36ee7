"""Fine-tuning: drift on D_r, and nothing else."""

from __future__ import annotations

import pytest
import torch

from raybench.data import Split
from raybench.task import UndeclaredAccess
from raybench.testing import make_bench, make_task, run_method


def loss_on(model: torch.nn.Module, split: Split) -> float:
    images, labels = split.tensors()
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(images), labels))


def test_learning_rate_zero_moves_only_batch_norm_buffers() -> None:
    task = make_task("finetune", bench=make_bench("resnet8", samples=120, model_options=(("width", 4),)))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    after = run_method("finetune", task, lr=0.0, epochs=1).state_dict()
    moved = {key for key, value in after.items() if not torch.equal(before[key], value)}
    assert moved == {
        key for key in before if key.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_more_steps_forget_more_and_keep_the_rest() -> None:
    task = make_task("finetune", model="mlp")
    forget, retain = task._splits["forget"], task._splits["retain"]
    start, kept = loss_on(task.model, forget), loss_on(task.model, retain)
    gentle = run_method("finetune", make_task("finetune", model="mlp"), lr=1e-3, epochs=1)
    model = run_method("finetune", task, lr=0.1, epochs=10)
    assert start < loss_on(gentle, forget) < loss_on(model, forget)
    assert loss_on(model, retain) < kept
    assert loss_on(model, forget) > 5 * start
    assert not model.training


def test_first_step_is_gradient_descent_on_the_retain_loss() -> None:
    task = make_task("finetune", model="mlp")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    images, labels = task.retain.tensors()
    value = torch.nn.functional.cross_entropy(task.model(images), labels)
    grads = dict(zip(before, torch.autograd.grad(value, list(task.model.parameters())), strict=True))
    whole = len(task.retain)
    model = run_method("finetune", task, lr=0.03, epochs=1, batch_size=whole, weight_decay=0.01)
    for name, p in model.named_parameters():
        expected = before[name] - 0.03 * (grads[name] + 0.01 * before[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_cost_data_and_checkpoints() -> None:
    task = make_task("finetune", model="mlp")
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("finetune", task, epochs=3)
    assert task._passes.backward == pytest.approx(3 * len(task.retain))
    assert steps == [1, 2, 3]
    with pytest.raises(UndeclaredAccess):
        _ = task.forget

"""DELETE: the target without the true class, the first loss, and that it forgets without retain data."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.mechanisms.distillation import kl_to_target
from raybench.methods.delete import answers_without
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method

EVERYTHING = 10_000  # samples a step


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_target_and_first_loss_are_the_specifications() -> None:
    logits, label = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    target = answers_without(logits, label)
    assert torch.allclose(target, torch.tensor([[0.0, 0.731059, 0.268941]]), atol=1e-6)
    assert float(kl_to_target(target, logits)) == pytest.approx(1.856584, abs=1e-5)


def test_first_loss_is_that_of_the_true_class_probability() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = 3.0 * torch.randn(20, 10, generator=draw), torch.randint(0, 10, (20,), generator=draw)
    found = kl_to_target(answers_without(logits, labels), logits)
    true = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    assert torch.allclose(found, -torch.log1p(-true), atol=1e-5)


def test_two_steps_are_those_of_plain_torch() -> None:
    """The target stays that of the original while the student moves."""
    bench, lr = make_bench("mlp", samples=300), 0.01
    task, model = make_task("delete", bench=bench), make_task("delete", bench=bench).model
    images, labels = task.forget.tensors()
    logits = model(images).detach()
    logits[torch.arange(len(labels)), labels] = -1e9
    for _ in range(2):
        loss = F.kl_div(F.log_softmax(model(images), 1), logits.softmax(1), reduction="batchmean")
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * g
    options = {"lr": lr, "epochs": 2, "momentum": 0.0, "weight_decay": 0.0, "batch_size": EVERYTHING}
    found = run_method("delete", task, **options)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_forgets_the_class_and_keeps_most_of_the_rest() -> None:
    task = make_task("delete")
    model = run_method("delete", task, tiny=False, lr=3e-4, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > 0.9


def test_batch_norm_cost_and_data() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))
    for eval_mode in (True, False):
        task = make_task("delete", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("delete", task, eval_mode=eval_mode)
        assert eval_mode == all(torch.equal(before[key], value) for key, value in task.model.named_buffers())
        assert task._passes.backward == pytest.approx(2 * len(task.forget))
        assert task._passes.forward == pytest.approx(4 * len(task.forget))
        with pytest.raises(UndeclaredAccess):
            _ = task.retain

"""Bad Teacher: the divergence, its two teachers, what it mixes, and that it forgets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.mechanisms.distillation import kl_to_target
from raybench.methods.bad_teacher import mixed_answers
from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method

EVERYTHING = 10_000  # samples a step


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def recorded_fit(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[UnlearningTask, Any, Any]:
    """The task, and the split and loss that the method would train on."""
    task, found = make_task("bad_teacher", bench=make_bench("lenet5", samples=300)), []

    def fit(model: nn.Module, split: Any, recipe: Any, *, loss: Any, **_: Any) -> None:
        found.append((split, loss))

    monkeypatch.setattr("raybench.mechanisms.finetuning.fit", fit)
    run_method("bad_teacher", task, **options)
    return task, *found[0]


def test_divergence_is_the_specifications() -> None:
    target, student = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    found = float(kl_to_target(target, student.log()))
    assert found == pytest.approx(0.360062, abs=1e-6)
    assert found / 3 == pytest.approx(0.120021, abs=1e-6)


def test_answers_come_from_the_right_teacher() -> None:
    good, bad = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    found = mixed_answers(good, bad, torch.tensor([0, 1]), 2.0)
    assert torch.allclose(found, torch.stack([(good[0] / 2).softmax(0), (bad[1] / 2).softmax(0)]))


def test_against_a_uniform_teacher_the_loss_is_cross_entropy_less_entropy() -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    uniform = mixed_answers(logits, torch.zeros(6, 10), torch.ones(6, dtype=torch.int64), 1.0)
    expected = F.cross_entropy(logits, torch.full((6, 10), 0.1), reduction="none") - math.log(10)
    assert torch.allclose(kl_to_target(uniform, logits), expected, atol=1e-5)


def test_at_the_original_the_retain_part_and_its_gradient_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    task, split, loss = recorded_fit(monkeypatch, retain_share=1.0)
    images, u = split.tensors()
    losses = loss(task.model, (images, u))
    assert float(losses[u == 0].abs().max().detach()) < 1e-6
    assert float(losses[u == 1].min().detach()) > 0.5
    gradients = torch.autograd.grad(losses[u == 0].mean(), list(task.model.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-6


def test_mixes_all_of_the_forget_set_with_a_share_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    task, split, _ = recorded_fit(monkeypatch, retain_share=0.3)
    images, u = split.tensors()
    assert int(u.sum()) == len(task.forget)
    assert int((u == 0).sum()) == round(0.3 * len(task.retain))
    assert torch.equal(images[u == 1], task.forget.tensors()[0])
    known = {row.numpy().tobytes() for row in task.retain.tensors()[0]}
    chosen = [row.numpy().tobytes() for row in images[u == 0]]
    assert set(chosen) <= known
    assert int(task.forget.targets.sum()) == 0  # the split of the task keeps its labels (class 0)


@pytest.mark.parametrize("mean_over_classes", [False, True])
def test_a_step_is_that_of_plain_torch(mean_over_classes: bool) -> None:
    bench, lr = make_bench("mlp", samples=300), 0.5
    task, twin = (make_task("bad_teacher", bench=bench) for _ in range(2))
    model, bad = twin.model, twin.new_model().eval()  # the same seed draws the same random network
    images = torch.cat([twin.forget.tensors()[0], twin.retain.tensors()[0]])
    with torch.no_grad():
        answers = torch.cat([bad(twin.forget.tensors()[0]), model(twin.retain.tensors()[0])]).softmax(1)
    loss = F.kl_div(F.log_softmax(model(images), 1), answers, reduction="batchmean") / (10 if mean_over_classes else 1)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    options = {"optimiser": "sgd", "momentum": 0.0, "lr": lr, "epochs": 1, "batch_size": EVERYTHING}
    found = run_method("bad_teacher", task, retain_share=1.0, mean_over_classes=mean_over_classes, **options)
    for p, was, g in zip(found.parameters(), model.parameters(), gradients, strict=True):
        assert torch.allclose(p, was - lr * g, atol=1e-6)


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("bad_teacher")
    model = run_method("bad_teacher", task, tiny=False, lr=1e-3, epochs=10)
    assert accuracy(model, task, FORGET) < 0.3
    assert accuracy(model, task, RETAIN) > 0.95


def test_cost_and_batch_norm() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))
    task = make_task("bad_teacher", bench=bench)
    before: dict[str, Tensor] = {key: value.clone() for key, value in task.model.named_buffers()}
    run_method("bad_teacher", task, epochs=2, retain_share=0.5, eval_mode=True)
    assert all(torch.equal(before[key], value) for key, value in task.model.named_buffers())
    used = len(task.forget) + round(0.5 * len(task.retain))
    assert task._passes.backward == pytest.approx(2 * used)
    assert task._passes.forward == pytest.approx(3 * 2 * used)


def test_share_must_be_one() -> None:
    with pytest.raises(UserError, match=r"retain_share must be in \(0, 1\], got 0"):
        run_method("bad_teacher", make_task("bad_teacher", model="mlp", samples=300), retain_share=0.0)

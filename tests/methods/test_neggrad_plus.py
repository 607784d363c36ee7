"""NegGrad+: the weighted objective, its two published forms, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method

EVERYTHING = 10_000  # samples a step


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("forget_weight", "value"), [(0.05, 0.115), (1e-4, 0.19983)])
def test_objective_is_the_papers(monkeypatch: pytest.MonkeyPatch, forget_weight: float, value: float) -> None:
    """Losses of 0.2 on D_r and 1.5 on D_f give a 0.2 - (1 - a) 1.5."""
    task, found = make_task("neggrad_plus", model="mlp", samples=300), []

    def stub(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.where(batch[1] == 0, 1.5, 0.2)

    def fit(model: nn.Module, split: Any, recipe: Any, *, loss: Any, **_: Any) -> None:
        found.append(float(loss(model, next(split.batches(recipe.batch_size))).mean()))

    task._loss = stub
    monkeypatch.setattr("raybench.mechanisms.finetuning.fit", fit)
    run_method("neggrad_plus", task, forget_weight=forget_weight)
    assert found == [pytest.approx(value, abs=1e-6)]


def test_a_step_is_that_of_the_two_gradients() -> None:
    task, weight, lr = make_task("neggrad_plus", model="mlp", samples=300), 0.3, 0.1
    before = [p.detach().clone() for p in task.model.parameters()]
    gradients = []
    for part in (RETAIN, FORGET):
        images, labels = task._splits[part].tensors()
        loss = F.cross_entropy(task.model(images), labels)
        gradients.append(torch.autograd.grad(loss, list(task.model.parameters())))
    model = run_method(
        "neggrad_plus", task, forget_weight=weight, lr=lr, epochs=1, batch_size=EVERYTHING, eval_mode=True
    )
    for p, was, kept, lost in zip(model.parameters(), before, *gradients, strict=True):
        assert torch.allclose(p, was - lr * ((1 - weight) * kept - weight * lost), atol=1e-6)


def test_the_pull_is_to_the_original_and_weighted_with_the_retain_loss() -> None:
    bench, lr, pull = make_bench("mlp", samples=300), 0.1, 2.0
    options = {"lr": lr, "batch_size": EVERYTHING, "eval_mode": True, "forget_weight": 0.1}

    def run(epochs: int, strength: float) -> list[Tensor]:
        model = run_method(
            "neggrad_plus", make_task("neggrad_plus", bench=bench), epochs=epochs, pull=strength, **options
        )
        return [p.detach().clone() for p in model.parameters()]

    start = list(make_task("neggrad_plus", bench=bench).model.parameters())
    once, twice, pulled = run(1, pull), run(2, 0.0), run(2, pull)
    for a, b in zip(once, run(1, 0.0), strict=True):
        assert torch.equal(a, b)  # at the original itself nothing pulls
    for was, first, free, held in zip(start, once, twice, pulled, strict=True):
        assert torch.allclose(held, free - lr * 0.9 * pull * (first - was), atol=1e-6)


def test_forgets_the_class_and_keeps_the_rest_until_it_runs_away() -> None:
    """Unclipped, the climb grows without bound once it has won: the edge is a learning rate wide."""

    def after(**options: Any) -> tuple[float, float]:
        task = make_task("neggrad_plus", model="mlp")
        model = run_method("neggrad_plus", task, tiny=False, epochs=10, batch_size=16, **options)
        return accuracy(model, task, FORGET), accuracy(model, task, RETAIN)

    forgotten, kept = after(lr=0.03, forget_weight=0.3, clip_norm=0.3)
    assert forgotten < 0.1
    assert kept > 0.95
    forgotten, kept = after(lr=0.1, forget_weight=0.1)
    assert forgotten < 0.1
    assert kept < 0.5


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: object) -> bool:
        task = make_task("neggrad_plus", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("neggrad_plus", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


def test_cost_and_checkpoints() -> None:
    task, steps = make_task("neggrad_plus", model="mlp", samples=300), []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("neggrad_plus", task, epochs=3, batch_size=13)
    kept, gone = len(task.retain), len(task.forget)
    assert gone % 13 == 0  # so that all batches of D_f are full
    assert task._passes.backward == pytest.approx(3 * (kept + 13 * -(-kept // 13)))
    assert steps == [1, 2, 3]


def test_weight_must_be_a_share() -> None:
    with pytest.raises(UserError, match=r"forget_weight must be in \[0, 1\], got 2"):
        run_method("neggrad_plus", make_task("neggrad_plus", model="mlp", samples=300), forget_weight=2.0)

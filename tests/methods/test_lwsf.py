"""LwSF in one shot: its own training, one step by hand, and what forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.mechanisms.cosine import CosineHead
from raybench.methods.lwsf import LwsfTraining
from raybench.registry import FORGET, RETAIN, TRAININGS
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_original_knows_images_and_codes() -> None:
    task = make_task("lwsf")
    assert isinstance(task.model.head, CosineHead)
    assert accuracy(task.model, task, RETAIN) > 0.95
    codes = task.artefacts["codes"]
    with torch.no_grad():
        assert torch.equal(task.model(codes).argmax(1), torch.arange(10))
    bench = make_bench("lenet5", "class", "lwsf")
    low, high = (bench.pixels.normalise(torch.full((1, 1, 1, 1), v)) for v in (0.0, 1.0))
    assert float(codes.min()) >= float(low)
    assert float(codes.max()) <= float(high)
    entry = TRAININGS["lwsf"]
    assert entry.network is not None
    fits = entry.network(bench.build, LwsfTraining())
    fits.load_state_dict(bench.original.model.state_dict())


@pytest.mark.parametrize("w_rev", [0.0, -0.5])
def test_one_step_by_hand(w_rev: float) -> None:
    """From a start that is not w*: the penalty's gradient is zero at w* itself, so two steps are compared."""
    task = make_task("lwsf", model="mlp")
    settings = {"lambda_ewc": 1e4, "lambda_keep": 2.0, "lambda_delete": 1.0, "lr": 0.01}
    codes, labels = task.artefacts["codes"], torch.arange(10)
    start = [p.detach().clone() for p in task.model.parameters()]
    weights = [p.clone().requires_grad_() for p in start]
    names = [name for name, _ in task.model.named_parameters()]

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(task.model, dict(zip(names, weights, strict=True)), (x,))

    squares = []
    for c in range(10):
        value = F.cross_entropy(logits(codes[c : c + 1]) / 30.0, labels[c : c + 1])
        squares.append([g.square() for g in torch.autograd.grad(value, weights)])
    fisher = [
        (sum(squares[c][i] for c in range(1, 10)) / 9 + w_rev * squares[0][i]).clamp(min=0) for i in range(len(start))
    ]
    for _ in range(2):
        shifted = logits(codes[1:]) - 30 * 0.35 * F.one_hot(labels[1:], 10)
        pull = sum((f * (w - o).square()).sum() for f, w, o in zip(fisher, weights, start, strict=True))
        value = 2.0 * F.cross_entropy(shifted, labels[1:]) + 0.5e4 * pull
        value = value - F.log_softmax(logits(codes[:1]), dim=1).mean()
        gradients = torch.autograd.grad(value, weights)
        weights = [(w - 0.01 * g).detach().requires_grad_() for w, g in zip(weights, gradients, strict=True)]
    result = run_method("lwsf", task, epochs=2, momentum=0.0, weight_decay=0.0, w_rev=w_rev, **settings)
    for found, expected, before in zip(result.parameters(), weights, start, strict=True):
        torch.testing.assert_close((found - before).detach(), (expected - before).detach(), rtol=1e-3, atol=1e-6)


def test_holding_back_holds() -> None:
    """A heavier penalty keeps the weights nearer to where they were."""

    def moved(lambda_ewc: float) -> float:
        task = make_task("lwsf", model="mlp")
        before = torch.nn.utils.parameters_to_vector(task.model.parameters()).clone()
        result = run_method("lwsf", task, epochs=20, lr=1e-3, lambda_delete=1.0, lambda_ewc=lambda_ewc)
        return float((torch.nn.utils.parameters_to_vector(result.parameters()) - before).detach().norm())

    assert moved(1e4) < moved(1e-2)


def test_forgets_with_the_deleted_codes_and_hardly_without() -> None:
    kept: list[float] = []
    for weight in (0.0, 1.0):
        task = make_task("lwsf")
        model = run_method("lwsf", task, tiny=False, epochs=30, lr=3e-4, lambda_delete=weight)
        assert accuracy(model, task, RETAIN) > 0.95
        kept.append(accuracy(model, task, FORGET))
    assert kept[0] > 0.95
    assert kept[1] < 0.7


def test_no_data_and_cost() -> None:
    task = make_task("lwsf", model="mlp", needs=frozenset())
    run_method("lwsf", task, epochs=5)
    assert task._passes.forward == pytest.approx(5 * 9 + 10, rel=0.01)

"""Fisher forgetting: what it sees, its cost, and that it forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.registry import FORGET, METHODS, RETAIN, SAMPLE, VALIDATION
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_erased_rows_forget_the_class_at_once_and_keep_the_rest() -> None:
    task = make_task("fisher_forgetting")
    model = run_method("fisher_forgetting", task)
    assert accuracy(model, task, FORGET) == 0.0
    assert accuracy(model, task, RETAIN) > 0.97
    assert accuracy(model, task, VALIDATION) > 0.9


def test_noise_alone_spares_nobody() -> None:
    for kind in ("class", SAMPLE):
        task = make_task("fisher_forgetting", kind=kind)
        weak = run_method("fisher_forgetting", task, alpha=1e-7, erase_rows=False)
        assert accuracy(weak, task, FORGET) > 0.95
        assert accuracy(weak, task, RETAIN) > 0.95
        task = make_task("fisher_forgetting", kind=kind)
        strong = run_method("fisher_forgetting", task, alpha=1e-3, erase_rows=False)
        assert accuracy(strong, task, FORGET) < 0.5
        assert accuracy(strong, task, RETAIN) < 0.5


def test_cost_is_a_forward_and_k_backward_passes() -> None:
    task = make_task("fisher_forgetting", model="mlp")
    run_method("fisher_forgetting", task, tiny=False)
    assert task._passes.forward == pytest.approx(len(task.retain))
    assert task._passes.backward == pytest.approx(10 * len(task.retain), rel=0.05)
    task = make_task("fisher_forgetting", model="mlp")
    run_method("fisher_forgetting", task, tiny=False, labels="data", samples=50)
    assert task._passes.backward == pytest.approx(50, rel=0.05)


def test_it_never_sees_the_forget_set_and_buffers_stay() -> None:
    assert METHODS["fisher_forgetting"].needs == {RETAIN}
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))
    task = make_task("fisher_forgetting", bench=bench)
    before = {key: value.clone() for key, value in task.model.named_buffers()}
    model = run_method("fisher_forgetting", task)
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())
    with pytest.raises(UndeclaredAccess):
        _ = task.forget

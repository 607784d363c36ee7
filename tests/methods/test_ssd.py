"""SSD: the no-op bound, what it touches, and that it forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.registry import FORGET, RETAIN, SAMPLE, VALIDATION
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("fisher", ["batch", "sample"])
def test_forgets_the_class_and_keeps_the_rest(fisher: str) -> None:
    task = make_task("ssd")
    model = run_method("ssd", task, fisher=fisher, alpha=10.0, batch_size=16)  # N / N_f is 11
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > 0.9
    assert accuracy(model, task, VALIDATION) > 0.85
    assert 0.0 < task.reported.scalars["selected"] < 0.3


@pytest.mark.parametrize("kind", ["class", SAMPLE])
def test_per_sample_fisher_selects_nothing_from_the_bound_on(kind: str) -> None:
    task = make_task("ssd", kind=kind)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    bound = (len(task.forget) + len(task.retain)) / len(task.forget)
    model = run_method("ssd", task, fisher="sample", alpha=bound * (1 + 1e-5))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert task.reported.scalars == {"selected": 0.0, "alpha_bound": bound}


def test_buffers_stay_and_the_cost_is_n_and_n_f() -> None:
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))
    task = make_task("ssd", bench=bench)
    before = {key: value.clone() for key, value in task.model.named_buffers()}
    run_method("ssd", task, alpha=1.0)
    assert all(torch.equal(before[key], value) for key, value in task.model.named_buffers())
    count = 2 * len(task.forget) + len(task.retain)
    assert task._passes.forward == pytest.approx(count)
    assert task._passes.backward == pytest.approx(count, rel=0.1)


def test_refused_settings() -> None:
    with pytest.raises(Exception, match="must not be negative"):
        run_method("ssd", alpha=-1.0)

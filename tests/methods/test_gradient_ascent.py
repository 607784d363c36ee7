"""Gradient ascent on D_f."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raybench.task import UndeclaredAccess
from raybench.testing import make_bench, make_task, run_method


def test_one_small_step_adds_lr_times_squared_gradient_norm() -> None:
    task = make_task("gradient_ascent", model="mlp")
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(0.3)  # a model that is less sure, so that the gradient is not lost in rounding
    task.model.double()
    images, labels = task.forget.tensors()
    before = F.cross_entropy(task.model(images.double()), labels)
    squared = sum(float(g.square().sum()) for g in torch.autograd.grad(before, list(task.model.parameters())))
    task._loss = lambda model, batch: F.cross_entropy(model(batch[0].double()), batch[1], reduction="none")
    lr = 1e-4 / squared
    model = run_method("gradient_ascent", task, lr=lr, epochs=1, batch_size=len(labels), weight_decay=0.0)
    gain = float((F.cross_entropy(model(images.double()), labels) - before).detach())
    assert gain == pytest.approx(lr * squared, rel=1e-2)


def test_forgets_the_class_and_then_everything() -> None:
    """lenet5, whose edge lies near a rate of 0.01: what falls there first is D_f, and a step beyond it all. Where the
    edge is to the last digit depends on the machine's rounding, so means over three seeds are looked at."""

    def after(lr: float) -> tuple[float, float]:
        found = {"retain": 0.0, "forget": 0.0}
        for seed in range(3):
            task = make_task("gradient_ascent", seed=seed)
            model = run_method("gradient_ascent", task, lr=lr, epochs=5, batch_size=16)
            for part in found:
                images, labels = task._splits[part].tensors()
                with torch.no_grad():
                    found[part] += float((model(images).argmax(1) == labels).float().mean()) / 3
        return found["retain"], found["forget"]

    kept, forgotten = after(1e-4)
    assert kept > 0.98
    assert forgotten > 0.9
    kept, forgotten = after(0.01)
    assert forgotten < 0.9
    assert kept > forgotten + 0.1
    kept, forgotten = after(0.02)
    assert kept < 0.4


def test_batch_norm_buffers_stay_unless_asked() -> None:
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))

    def buffers(**options: object) -> bool:
        task = make_task("gradient_ascent", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("gradient_ascent", task, epochs=1, **options)
        return all(torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert buffers()
    assert not buffers(eval_mode=False)


def test_clipping_bounds_the_step() -> None:
    task = make_task("gradient_ascent", model="mlp")
    before = torch.nn.utils.parameters_to_vector(task.model.parameters()).clone()
    options = {"lr": 0.1, "epochs": 1, "batch_size": len(task.forget), "weight_decay": 0.0, "clip_norm": 1e-6}
    model = run_method("gradient_ascent", task, **options)
    moved = (torch.nn.utils.parameters_to_vector(model.parameters()) - before).detach()
    assert float(moved.norm()) == pytest.approx(1e-7, rel=0.3)  # weights are fp32: small steps are rounded


def test_cost_data_and_checkpoints() -> None:
    task = make_task("gradient_ascent", model="mlp")
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("gradient_ascent", task, epochs=3)
    assert task._passes.backward == pytest.approx(3 * len(task.forget))
    assert steps == [1, 2, 3]
    with pytest.raises(UndeclaredAccess):
        _ = task.retain

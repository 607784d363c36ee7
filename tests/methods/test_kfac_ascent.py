"""K-FAC ascent: one step against a dense solve, what moves, and that it beats ascent without the curvature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.mechanisms.curvature import factored_layers, gradient_matrix, kfac_factors, matrix
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_a_step_is_the_normalised_solution_of_the_dense_system() -> None:
    """A small network on 28x28 inputs: the head's part of the update against the Kronecker product written out."""
    bench = make_bench("mlp", samples=300, model_options=(("hidden", (5,)),))
    task, step, damping = make_task("kfac_ascent", bench=bench), 0.02, 0.05
    layers = factored_layers(task.model)
    before = {name: matrix(layer).double() for name, layer in layers.items()}
    images, labels = task.forget.tensors()
    F.cross_entropy(task.model(images), labels).backward()
    gradients = {name: gradient_matrix(layer).double() for name, layer in layers.items()}
    task.model.zero_grad(set_to_none=True)
    factors = kfac_factors(task.model, task.retain, task.loss, labels="exact")

    def damped(factor: Tensor) -> Tensor:
        wide = factor.double()
        return wide + math.sqrt(damping) * wide.diagonal().mean() * torch.eye(len(wide), dtype=torch.float64)

    wanted = {}
    for name, g in gradients.items():
        left, right = damped(factors[f"{name}/G"]), damped(factors[f"{name}/A"])
        if name == "head":
            wanted[name] = torch.linalg.solve(torch.kron(left, right), g.flatten()).view_as(g)
        else:
            wanted[name] = torch.linalg.solve(left, torch.linalg.solve(right, g.T).T)
    length = torch.cat([u.flatten() for u in wanted.values()]).norm()
    size = torch.cat([w.flatten() for w in before.values()]).norm()

    options = {"step": step, "damping": damping, "epochs": 1, "batch_size": 10_000, "labels": "exact", "samples": None}
    model = run_method("kfac_ascent", task, **options)
    for name, layer in factored_layers(model).items():
        moved = matrix(layer).double() - before[name]
        assert torch.allclose(moved, step * size * wanted[name] / length, atol=1e-5), name
        assert float(moved.abs().max()) > 1e-3


def test_a_small_step_climbs() -> None:
    task = make_task("kfac_ascent", samples=300)
    images, labels = task.forget.tensors()
    before = F.cross_entropy(task.model(images), labels).item()
    model = run_method("kfac_ascent", task, step=1e-3, epochs=1, batch_size=10_000)
    assert F.cross_entropy(model(images), labels).item() > before


@pytest.mark.parametrize("data", ["retain", "forget"])
def test_curvature_keeps_what_plain_ascent_breaks(data: str) -> None:
    """Steps of equal length along the plain gradient (which is what immense damping leaves)."""

    def after(damping: float) -> tuple[float, float]:
        task = make_task("kfac_ascent", samples=300)
        options = {"step": 0.03, "epochs": 4, "batch_size": 16, "data": data, "damping": damping}
        model = run_method("kfac_ascent", task, tiny=False, **options)
        return accuracy(model, task, FORGET), accuracy(model, task, RETAIN)

    plain_forgotten, plain_kept = after(1e8)
    assert plain_forgotten < 0.05
    assert plain_kept < 0.7
    if data == "retain":
        forgotten, kept = after(1e-2)
        assert forgotten < 0.05
        assert kept > 0.95
    else:  # the curvature of D_f says nothing about what must stay; the step is another one all the same
        assert after(1e-2) != (plain_forgotten, plain_kept)


def test_only_matrices_move() -> None:
    task = make_task("kfac_ascent", model="vgg8", samples=300, model_options=(("width", 4),))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    norms = {id(p) for m in task.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    model = run_method("kfac_ascent", task)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) in norms), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_retain_data_are_touched_for_their_curvature_only() -> None:
    bench = make_bench("mlp", samples=300)
    run_method("kfac_ascent", make_task("kfac_ascent", bench=bench, needs=frozenset({FORGET})), data="forget")
    with pytest.raises(UndeclaredAccess):
        run_method("kfac_ascent", make_task("kfac_ascent", bench=bench, needs=frozenset({FORGET})))


def test_factors_are_shared_and_checkpoints_come_every_epoch() -> None:
    asked: list[dict[str, object]] = []
    steps: list[int] = []

    def once(name: str, compute: object, inputs: dict[str, object]) -> dict[str, Tensor]:
        asked.append({"name": name, **inputs})
        return compute(torch.Generator().manual_seed(0))  # type: ignore[operator]

    for step, damping, epochs in ((0.01, 1e-3, 1), (0.03, 1.0, 3)):
        task = make_task("kfac_ascent", model="mlp", samples=300, once=once)
        task._on_checkpoint = lambda model, at, scalars: steps.append(at)
        run_method("kfac_ascent", task, step=step, damping=damping, epochs=epochs)
    assert asked[0] == asked[1]
    assert steps == [1, 1, 2, 3]

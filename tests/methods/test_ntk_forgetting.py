"""NTK forgetting: the own training, what it needs from it, the rule of feasibility, and that it forgets."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from raybench.methods.ntk_forgetting import NtkForgettingHparams
from raybench.registry import FORGET, METHODS, RETAIN, TRAININGS
from raybench.task import Facts, UnlearningTask
from raybench.testing import RECIPE, make_bench, make_task, run_method
from raybench.training import Recipe, TrainingJob

LINEAR = (("hidden", ()),)


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_forgets_the_class_and_keeps_the_rest() -> None:
    """All 250 samples linearised; at ``scale`` 1 a network that fits its data hardly moves."""
    task = make_task("ntk_forgetting", model="mlp", model_options=(("hidden", (32,)),), samples=300)
    assert accuracy(task.model, task, FORGET) == 1.0
    model = run_method("ntk_forgetting", task, rows=2500, ridge=100.0, scale=30.0)
    assert accuracy(model, task, FORGET) < 0.2
    assert accuracy(model, task, RETAIN) > 0.9
    assert task.reported.scalars["samples"] == len(task.forget) + len(task.retain)
    assert task.reported.scalars["trapezium"] > 1.0


def test_d_f_and_d_r_are_thinned_alike() -> None:
    task = make_task("ntk_forgetting", model="mlp", model_options=LINEAR)
    run_method("ntk_forgetting", task, rows=1500)
    assert task.reported.scalars["samples"] == 13 + 136  # 0.3 of 45 and of 455, rounded down


def test_the_training_decays_toward_the_start_and_keeps_it() -> None:
    """One full-batch step without momentum after another: w <- w - lr (gradient + lambda (w - w_init))."""
    bench = make_bench("mlp", samples=60, model_options=LINEAR)
    assert bench.train is not None
    recipe = Recipe(epochs=3, batch_size=len(bench.train), lr=0.1, momentum=0.0, schedule="none", augment=False)
    generator = torch.Generator().manual_seed(0)
    job = TrainingJob(
        bench.train.bound(generator),
        recipe,
        TRAININGS["ntk_forgetting"].hparams(weight_decay=0.5),
        0,
        bench.build,
        bench.facts.num_classes,
        bench.facts.input_shape,
        generator,
        torch.device("cpu"),
    )
    trained = TRAININGS["ntk_forgetting"].fn(job)
    model = job.new_model()
    start = [p.detach().clone() for p in model.parameters()]
    for p, (name, _) in zip(start, model.named_parameters(), strict=True):
        assert torch.equal(trained.artefacts[f"init/{name}"], p)
    images, labels = bench.train.tensors()
    for _ in range(3):
        value = nn.functional.cross_entropy(model(images), labels)
        for p, g, first in zip(
            model.parameters(), torch.autograd.grad(value, list(model.parameters())), start, strict=True
        ):
            p.data -= 0.1 * (g + 0.5 * (p.data - first))
    for found, expected in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(trained.artefacts["weight_decay"]) == 0.5


def test_an_original_without_its_start_is_refused() -> None:
    task = make_task("ntk_forgetting", bench=make_bench("lenet5"))
    with pytest.raises(ValueError, match="initial weights"):
        run_method("ntk_forgetting", task)


def test_the_head_alone() -> None:
    task = make_task("ntk_forgetting")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    model = run_method("ntk_forgetting", task, layers="head", scale=100.0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"head.weight", "head.bias"}


def test_scaling_and_noise() -> None:
    def change(**options: object) -> torch.Tensor:
        task = make_task("ntk_forgetting", model="mlp", model_options=LINEAR)
        before = torch.nn.utils.parameters_to_vector(task.model.parameters()).detach().clone()
        model = run_method("ntk_forgetting", task, **options)  # type: ignore[arg-type]
        factors.append(task.reported.scalars["trapezium"])
        return (torch.nn.utils.parameters_to_vector(model.parameters()) - before).detach().double()

    factors: list[float] = []
    plain, stretched = change(scaling="none", scale=100.0), change(scale=100.0 / 2)
    assert factors[0] == 1.0
    assert float(stretched.norm() / plain.norm()) == pytest.approx(factors[1] / 2, rel=0.02)
    assert float(change(scaling="none", noise=1e-6).norm()) > 10 * float(change(scaling="none").norm())


def test_networks_that_are_too_large_are_skipped() -> None:
    skip = METHODS["ntk_forgetting"].skip
    assert skip is not None
    facts = Facts("cifar10", "resnet18", 10, (3, 32, 32), (0,), "class")
    assert "exceeds 4 GiB" in (skip(facts, NtkForgettingHparams()) or "")
    wide = dataclasses.replace(facts, model="resnet18(width=64)", model_options={"width": 64})  # a label has options
    assert "exceeds 4 GiB" in (skip(wide, NtkForgettingHparams()) or "")
    assert skip(facts, NtkForgettingHparams(layers="head")) is None
    assert skip(dataclasses.replace(facts, model="lenet5", input_shape=(1, 28, 28)), NtkForgettingHparams()) is None
    with pytest.raises(ValueError, match="rows must be in"):
        NtkForgettingHparams(rows=10_000)
    assert RECIPE.weight_decay > 0.0  # which the own training replaces

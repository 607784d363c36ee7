"""AFIM: the three variants, the literal descent that never forgets, and a model that is whole again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.mechanisms.activation import BoundedActivation, SurrogateReLU
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method

EVERYTHING = 10_000
VARIANTS = ["A", "B", "C", "relu"]


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def loss_on_forget(model: nn.Module, task: UnlearningTask) -> float:
    images, labels = task._splits[FORGET].tensors()
    with torch.no_grad():
        return float(F.cross_entropy(model(images), labels))


def small(model: str, **options: Any) -> Bench:
    return make_bench(model, samples=300, model_options=tuple(options.items()))


def run(bench: Bench | None = None, **options: Any) -> tuple[nn.Module, UnlearningTask]:
    task = make_task("afim", bench=bench or small("mlp"))
    return run_method("afim", task, **options), task


# --- what it does to the classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["A", "relu"])
@pytest.mark.parametrize("mu", [0.0, 1.0])
@pytest.mark.parametrize("kappa", [0.1, 1.0])
def test_literal_descent_never_forgets(variant: str, mu: float, kappa: float) -> None:
    """Algorithm 1 minimises the loss on D_f: all of it stays, whatever becomes of the rest."""
    for model in ("mlp", "lenet5"):
        task = make_task("afim", bench=small(model))
        options = {"direction": "descent", "mu": mu, "kappa": kappa, "epochs": 4, "batch_size": 16}
        unlearned = run_method("afim", task, variant=variant, **options)
        assert accuracy(unlearned, task, FORGET) == 1.0


@pytest.mark.parametrize("variant", ["A", "relu"])
def test_ascent_forgets_and_mixing_keeps_some_of_the_rest(variant: str) -> None:
    options = {"variant": variant, "epochs": 4, "batch_size": 16}
    model, task = run(mu=1.0, **options)
    alone, _ = run(mu=0.0, **options)
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > max(0.6, accuracy(alone, task, RETAIN))


@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_beta_decides_whether_the_closed_form_climbs(model: str) -> None:
    """Eq. 14: beta = 0 climbs; beta without bound is a preconditioned descent although the direction is ascent."""
    bench = small(model)
    start = loss_on_forget(bench.original.model, make_task("afim", bench=bench))
    options = {"variant": "C", "mu": 0.0, "step": 1e-3, "epochs": 1}
    assert loss_on_forget(*run(bench, kappa=0.0, **options)) > start * 1.001
    assert loss_on_forget(*run(bench, kappa=1e12, **options)) < start * 0.999
    assert loss_on_forget(*run(bench, kappa=0.0, direction="descent", **options)) < start * 0.999


# --- against written-out steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_closed_form_step_on_one_layer(bias: bool) -> None:
    """w + step |w| g P / |g P| with P written out from the inputs, damped, in float64."""
    bench = small("mlp", hidden=())
    task, kappa, step, damping = make_task("afim", bench=bench), 3.0, 0.05, 0.1
    if not bias:
        task.model.head.bias = None
    images, labels = task.forget.tensors()
    rows = images.flatten(1).double()
    head = task.model.head
    parts = [head.weight.detach().double()]
    if bias:
        rows, parts = torch.cat([rows, torch.ones(len(rows), 1)], 1), [*parts, head.bias.detach().double()[:, None]]
    w = torch.cat(parts, 1).requires_grad_(True)
    outputs = rows @ w.T
    (g,) = torch.autograd.grad(F.cross_entropy(outputs, labels), w)
    count, s = len(rows), outputs.detach()
    a = rows.T @ rows / count
    inverse = torch.linalg.inv(a + damping * a.diagonal().mean() * torch.eye(len(a)))
    beta = kappa * float(s.square().mean())
    p = inverse @ (rows.T @ s @ s.T @ rows / count**2 - beta / count * a) @ inverse
    wanted = w.detach() + step * w.detach().norm() * (g @ p) / (g @ p).norm()
    options = {"variant": "C", "mu": 0.0, "kappa": kappa, "step": step, "damping": damping, "epochs": 1}
    model = run_method("afim", task, batch_size=17, **options)
    found = torch.cat([model.head.weight, model.head.bias[:, None]], 1) if bias else model.head.weight
    assert torch.allclose(found.detach().double(), wanted, atol=1e-4)
    assert float((wanted - w.detach()).abs().max()) > 1e-2


def test_control_without_activations_is_plain_adam_on_the_mixed_loss() -> None:
    bench, mu = small("mlp"), 0.5
    task = make_task("afim", bench=bench)
    optimiser = torch.optim.Adam(task.model.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        losses = [F.cross_entropy(task.model(x), y) for x, y in (task._splits[p].tensors() for p in (FORGET, RETAIN))]
        (-losses[0] + mu * losses[1]).backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 5.0)
        optimiser.step()
    model, _ = run(bench, variant="relu", mu=mu, epochs=3, batch_size=EVERYTHING, rho=1.0)
    for p, wanted in zip(model.parameters(), task.model.parameters(), strict=True):
        assert torch.allclose(p, wanted, atol=1e-5)


@pytest.mark.parametrize(("variant", "kind"), [("A", BoundedActivation), ("B", SurrogateReLU)])
def test_scales_come_from_the_forget_set(variant: str, kind: type) -> None:
    """beta = kappa E[x^2] and epsilon relative, layer by layer, from the model before the first step."""
    bench = small("mlp", hidden=(12, 7))
    task, seen = make_task("afim", bench=bench), []

    def spy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.extend(m for m in model.modules() if isinstance(m, kind))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task._loss = spy
    run_method("afim", task, variant=variant, kappa=0.3, epsilon=0.02, mu=0.0, epochs=1, batch_size=EVERYTHING)
    with torch.no_grad():
        first = bench.original.model.blocks[0][1](task.forget.tensors()[0].flatten(1))
        second = bench.original.model.blocks[1][0](first.relu())
    for found, x in zip(seen, (first, second), strict=True):
        square = float(x.square().mean())
        assert found.root**2 == pytest.approx(0.3 * square, rel=1e-5)
        assert found.epsilon == pytest.approx(0.02 * math.sqrt(square), rel=1e-5)
    assert task.reported.scalars["relus"] == 2


# --- the model is whole again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("restore", ["at_end", "layer_by_layer"])
def test_relus_are_back_at_checkpoints_and_at_the_end(variant: str, restore: str) -> None:
    task = make_task("afim", bench=small("vgg8", width=4))
    kinds = [(name, type(m)) for name, m in task.model.named_modules()]
    keys, buffers = list(task.model.state_dict()), {k: v.clone() for k, v in task.model.named_buffers()}
    seen: list[list[tuple[str, type]]] = []
    task._on_checkpoint = lambda model, *_: seen.append([(name, type(m)) for name, m in model.named_modules()])
    model = run_method("afim", task, variant=variant, restore=restore, epochs=2)
    assert seen == [kinds, kinds]
    assert [(name, type(m)) for name, m in model.named_modules()] == kinds
    assert list(model.state_dict()) == keys
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())


def test_a_stop_at_a_checkpoint_leaves_a_model_with_relus() -> None:
    class Enough(Exception):
        pass

    def stop(model: nn.Module, step: int, scalars: object) -> None:
        raise Enough

    task = make_task("afim", bench=small("lenet5"), on_checkpoint=stop)
    with pytest.raises(Enough):
        run_method("afim", task, variant="A")
    assert not any(isinstance(m, BoundedActivation) for m in task.model.modules())
    assert sum(isinstance(m, nn.ReLU) for m in task.model.modules()) == 4


def test_layers_come_back_in_equal_parts_of_the_run() -> None:
    task, present = make_task("afim", bench=small("lenet5")), []

    def spy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        present.append(sum(isinstance(m, BoundedActivation) for m in model.modules()))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task._loss = spy
    run_method("afim", task, mu=0.0, restore="layer_by_layer", epochs=8, batch_size=EVERYTHING)
    assert present == [4, 4, 3, 3, 2, 2, 1, 1]
    present.clear()
    run_method("afim", task, mu=0.0, epochs=3, batch_size=EVERYTHING)
    assert present == [4, 4, 4]


# --- data and cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_retain_data_are_touched_only_where_they_are_mixed_in(variant: str) -> None:
    bench = small("mlp")

    def task() -> UnlearningTask:
        return make_task("afim", bench=bench, needs=frozenset({FORGET}))

    run_method("afim", task(), variant=variant, mu=0.0)
    run_method("afim", task(), variant=variant, rho=0.0)
    with pytest.raises(UndeclaredAccess):
        run_method("afim", task(), variant=variant, mu=1.0)


@pytest.mark.parametrize(("variant", "extra"), [("A", 1), ("B", 1), ("relu", 0)])
def test_cost(variant: str, extra: int) -> None:
    _, task = run(variant=variant, epochs=3, batch_size=EVERYTHING, mu=0.0)
    count = len(task.forget)
    assert task._passes.backward == pytest.approx(3 * count)
    assert task._passes.forward == pytest.approx((3 + extra) * count)
    _, task = run(variant=variant, epochs=2, batch_size=13, mu=1.0, rho=2.0)
    assert count % 13 == 0
    assert task._passes.backward == pytest.approx(2 * 3 * count, rel=0.06)  # the last batch of a pass may be short


def test_models_without_relu() -> None:
    bench = small("mlp", activation="sigmoid")
    for variant in ("A", "B"):
        with pytest.raises(UserError, match=r"nn\.ReLU modules, the model has none; use C"):
            run(bench, variant=variant)
    for variant in ("C", "relu"):
        model, _ = run(bench, variant=variant)
        assert not torch.equal(model.head.weight, bench.original.model.head.weight)


def test_weights_of_the_mix_must_not_be_negative() -> None:
    with pytest.raises(UserError, match="must not be negative, got mu=-1"):
        run(mu=-1.0)

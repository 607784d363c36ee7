"""DeepClean: exact freezing, the two ends of gamma, and that it forgets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.methods.deepclean import DeepCleanHparams
from raybench.registry import FORGET, METHODS, RETAIN, VALIDATION
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method
from raybench.training import fit

LINEAR = (("hidden", ()),)


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(bench: Bench, **options: Any) -> float:
    """Share of the entries that differ from the original's."""
    task = make_task("deepclean", bench=bench)
    before, after = weights(task.model), weights(run_method("deepclean", task, tiny=False, **options))
    moved = sum(int((before[name] != value).sum()) for name, value in after.items())
    share = moved / sum(value.numel() for value in after.values())
    assert share <= task.reported.scalars["selected"] + 1e-12
    return share


@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_forgets_the_class_and_keeps_the_rest(model: str) -> None:
    task = make_task("deepclean", model=model)
    assert accuracy(task.model, task, FORGET) == 1.0
    unlearned = run_method("deepclean", task, tiny=False, lr=3e-3, epochs=10)  # 455 samples are few steps
    assert accuracy(unlearned, task, FORGET) < 0.05
    assert accuracy(unlearned, task, RETAIN) > 0.95
    assert accuracy(unlearned, task, VALIDATION) > 0.9
    assert 0.0 < task.reported.scalars["selected"] < 0.3


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_frozen_entries_are_equal_to_the_bit(optimiser: str) -> None:
    bench = make_bench("mlp")
    share = changed(bench, optimiser=optimiser, lr=0.01, weight_decay=0.01, epochs=2, reset="none")
    assert 0.0 < share < 0.3


def test_gamma_infinite_is_the_identity() -> None:
    task = make_task("deepclean", model="resnet8", bench=small_resnet())
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model = run_method("deepclean", task, gamma=math.inf)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert task.reported.scalars == {"selected": 0.0}


def test_gamma_zero_is_training_from_zero_on_the_retain_set() -> None:
    """Softmax regression, where zero is a fair start; pixels that are never lit stay as they were, unseen."""
    bench = make_bench("mlp", model_options=LINEAR)
    options: dict[str, Any] = {"optimiser": "sgd", "lr": 0.05, "epochs": 3}
    task = make_task("deepclean", bench=bench)
    model = run_method("deepclean", task, tiny=False, gamma=0.0, cap=1.0, **options)

    other = make_task("deepclean", bench=bench)
    with torch.no_grad():
        for p in other.model.parameters():
            p.zero_()
    recipe = other.recipe.__class__(**{**vars(other.recipe), **options, "schedule": "none", "weight_decay": 0.0})
    fit(other.model, other.retain, recipe.__class__(**{**vars(recipe), "batch_size": DeepCleanHparams().batch_size}))
    images, _ = task.forget.tensors()
    torch.testing.assert_close(model(images), other.model(images), rtol=1e-4, atol=1e-4)
    assert accuracy(model, task, FORGET) == 0.0


def test_bigger_gamma_selects_fewer_and_quantile_selects_its_share() -> None:
    bench = make_bench("mlp")

    def selected(**options: Any) -> float:
        task = make_task("deepclean", bench=bench)
        run_method("deepclean", task, epochs=0, **options)
        return task.reported.scalars["selected"]

    shares = [selected(gamma=gamma) for gamma in (0.5, 2.0, 10.0, 50.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[-1] > 0.0
    assert selected(gamma=None, quantile=0.05) == pytest.approx(0.05, abs=1e-3)


def test_gamma_in_trace_units_is_a_change_of_scale() -> None:
    bench = make_bench("mlp")

    def run(**options: Any) -> tuple[float, dict[str, torch.Tensor]]:
        task = make_task("deepclean", bench=bench)
        model = run_method("deepclean", task, epochs=0, **options)
        return task.reported.scalars["threshold"], weights(model)

    threshold, relative = run(gamma=2.0)
    assert threshold != 2.0
    _, absolute = run(gamma=threshold, gamma_unit="absolute")
    assert all(torch.equal(relative[name], value) for name, value in absolute.items())


def test_reset() -> None:
    bench = make_bench("mlp")
    before = weights(bench.original.model)
    for reset in ("zero", "reinit", "none"):
        task = make_task("deepclean", bench=bench)
        after = weights(run_method("deepclean", task, epochs=0, reset=reset))
        moved = torch.cat([(before[name] != value).flatten() for name, value in after.items()])
        values = torch.cat([value.flatten() for value in after.values()])[moved]
        if reset == "none":
            assert not bool(moved.any())
        else:
            assert float(moved.float().mean()) == pytest.approx(task.reported.scalars["selected"], abs=1e-4)
            assert bool((values == 0.0).all()) == (reset == "zero")


def small_resnet() -> Bench:
    return make_bench("resnet8", samples=120, model_options=(("width", 4),))


def test_batch_norm_options() -> None:
    def run(**options: Any) -> tuple[bool, bool]:
        task = make_task("deepclean", bench=small_resnet())
        buffers = {key: value.clone() for key, value in task.model.named_buffers()}
        layers = {name for name, layer in task.model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
        norms = {
            name: p.detach().clone() for name, p in task.model.named_parameters() if name.rsplit(".", 1)[0] in layers
        }
        assert norms
        model = run_method("deepclean", task, gamma=0.1, **options)
        same = all(torch.equal(buffers[key], value) for key, value in model.named_buffers())
        return same, all(torch.equal(norms[name], model.get_parameter(name)) for name in norms)

    assert run() == (False, False)
    assert run(bn_buffers="freeze") == (True, False)
    assert run(exclude_norm=True) == (False, True)


def test_cost_and_what_is_shared_between_settings_of_gamma() -> None:
    task = make_task("deepclean", model="mlp")
    asked: list[tuple[str, dict[str, Any]]] = []
    once = task._once
    task._once = lambda name, compute, inputs: (asked.append((name, dict(inputs))), once(name, compute, inputs))[1]
    run_method("deepclean", task, epochs=3)
    forget, retain = len(task.forget), len(task.retain)
    assert task._passes.backward == pytest.approx(forget + 100 + 3 * retain)
    assert asked == [("fisher", {"samples": 100, "mode": "per_sample", "batch_size": 64})]


def test_per_batch_fisher_selects_something_else() -> None:
    bench = make_bench("mlp")
    tasks = [make_task("deepclean", bench=bench) for _ in range(2)]
    ends = [
        weights(run_method("deepclean", task, epochs=0, fisher_samples=None, fisher_mode=mode))
        for task, mode in zip(tasks, ("per_sample", "per_batch"), strict=True)
    ]
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_sample_scenarios() -> None:
    task = make_task("deepclean", model="mlp", kind="sample")
    model = run_method("deepclean", task, tiny=False)
    images, labels = task.retain.tensors()
    with torch.no_grad():
        assert float(F.cross_entropy(model(images), labels)) < 0.5
    assert accuracy(model, task, VALIDATION) > 0.8


def test_exactly_one_selection_rule() -> None:
    for wrong in ({"quantile": 0.1}, {"gamma": None}):
        with pytest.raises(ValueError, match="exactly one of gamma and quantile"):
            DeepCleanHparams(**wrong)
    with pytest.raises(ValueError, match="quantile must be in"):
        DeepCleanHparams(gamma=None, quantile=0.0)
    assert METHODS["deepclean"].scope == {"class", "sample"}

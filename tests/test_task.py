"""What a method may see, and what it may not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench.passes import TimeLimit
from raybench.registry import FORGET, RETAIN, VALIDATION
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task

OPTIONS: dict[str, Any] = {"model": "mlp", "samples": 120, "model_options": (("hidden", (8,)),)}


def task_of(**options: Any) -> UnlearningTask:
    return make_task(**{**OPTIONS, **options})


@pytest.mark.parametrize("declared", [set(), {FORGET}, {RETAIN, VALIDATION}, {FORGET, RETAIN, VALIDATION}])
def test_only_declared_data_can_be_had(declared: set[str]) -> None:
    task = task_of(needs=frozenset(declared))
    for name in (FORGET, RETAIN, VALIDATION):
        if name in declared:
            assert len(getattr(task, name)) > 0
        else:
            with pytest.raises(UndeclaredAccess, match=f"asked for the {name} data"):
                getattr(task, name)
    assert not hasattr(task, "test")
    assert not hasattr(task, "retrained")


def test_the_original_stays_as_it_is() -> None:
    bench = make_bench(**OPTIONS)
    before = copy.deepcopy(bench.original.model.state_dict())
    task = task_of()
    assert not task.model.training
    assert all(p.requires_grad for p in task.model.parameters())
    with torch.no_grad():
        for p in task.model.parameters():
            p.zero_()
    task.model.train()
    assert all(torch.equal(t, before[n]) for n, t in bench.original.model.state_dict().items())
    assert not any("_raybench_passes" in layer.__dict__ for layer in bench.original.model.modules())
    again = task_of()
    assert all(torch.equal(t, before[n]) for n, t in again.model.state_dict().items())


def test_new_models_come_from_the_tasks_generator_alone() -> None:
    state = torch.get_rng_state()
    task = task_of(seed=3)
    one, two = task.new_model(), task.new_model()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again = task_of(seed=3)
    assert torch.equal(again.new_model().head.weight, one.head.weight)  # type: ignore[union-attr]
    assert torch.equal(again.new_model().head.weight, two.head.weight)  # type: ignore[union-attr]
    assert not torch.equal(one.head.weight, two.head.weight)  # type: ignore[union-attr]
    assert not torch.equal(task_of(seed=4).new_model().head.weight, one.head.weight)  # type: ignore[union-attr]
    assert one.state_dict().keys() == task.model.state_dict().keys()


def test_everything_from_the_task_is_counted() -> None:
    task = task_of()
    images, labels = task.forget.tensors()
    n = len(labels)
    for count, model in enumerate((task.model, task.new_model(), copy.deepcopy(task.model)), start=1):
        task.loss(model, (images, labels)).mean().backward()
        assert task._passes.forward == pytest.approx(count * n)
        assert task._passes.backward == pytest.approx(count * n)
    own = task.track(nn.Linear(10, 10))
    own(torch.zeros(1, 10))
    assert 3 * n < task._passes.forward < 3 * n + 1


def test_loss_is_cross_entropy_per_sample() -> None:
    task = task_of()
    images, labels = task.retain.tensors()
    logits = task.model(images)
    expected = torch.logsumexp(logits, 1) - logits.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(task.loss(task.model, (images, labels)), expected)


def test_pixels_and_back() -> None:
    task = task_of()
    images, _ = task.forget.tensors()
    pixels = task.to_pixels(images)
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    torch.testing.assert_close(task.from_pixels(pixels), images)


def test_splits_draw_from_the_tasks_generator() -> None:
    def order(seed: int) -> list[int]:
        task = task_of(seed=seed)
        return torch.cat([y for _, y in task.retain.batches(16, shuffle=True)]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert task_of().retain.generator is not None
    assert make_bench(**OPTIONS).splits[RETAIN].generator is None


def test_a_checkpoint_is_off_the_clock_off_the_account_and_changes_nothing() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []

    def look(model: nn.Module, step: int, scalars: Mapping[str, float]) -> None:
        assert not task._clock.running
        torch.rand(3)
        model.eval()
        model(task._splits[FORGET].tensors()[0])
        seen.append((step, dict(scalars)))

    task = task_of(on_checkpoint=look)
    task._clock.start()
    task.model.train()
    task.model.head.eval()  # type: ignore[union-attr]
    state = torch.get_rng_state()
    task.checkpoint(task.model, 4, loss=0.5)
    assert seen == [(4, {"loss": 0.5})]
    assert task._clock.running
    assert task._passes.forward == 0.0
    assert torch.equal(torch.get_rng_state(), state)
    assert task.model.training
    assert not task.model.head.training  # type: ignore[union-attr]  # a part that was frozen stays frozen
    task_of().checkpoint(task.model, 1)  # nobody looks


def test_the_time_limit_stops_batches_and_checkpoints() -> None:
    task = task_of()
    task._clock.limit_s = 1.0
    task.checkpoint(task.model, 1)
    next(task.forget.batches(4))
    task._clock.charge(2.0, 0.0)
    with pytest.raises(TimeLimit):
        task.checkpoint(task.model, 1)
    with pytest.raises(TimeLimit):
        next(task.forget.batches(4))


def test_report_keeps_copies() -> None:
    task = task_of()
    grid = torch.zeros(2, requires_grad=True)
    task.report({"epsilon": 1}, {"grid": grid})
    task.report(scalars={"delta": torch.tensor(0.5)})  # type: ignore[dict-item]
    with torch.no_grad():
        grid.add_(1)
    assert task.reported.scalars == {"epsilon": 1.0, "delta": 0.5}
    assert task.reported.tensors["grid"].tolist() == [0.0, 0.0]
    assert not task.reported.tensors["grid"].requires_grad


def rebuilt(task: UnlearningTask, **changes: Any) -> UnlearningTask:
    """The same task with other arguments of the harness."""
    bench = make_bench(**OPTIONS)
    arguments: dict[str, Any] = {
        "original": bench.original.model,
        "build": bench.build,
        "splits": bench.splits,
        "needs": frozenset(),
        "facts": bench.facts,
        "pixels": bench.pixels,
        "recipe": task.recipe,
        "generator": task.generator,
        "clock": task._clock,
        "passes": task._passes,
        "once": task._once,
    }
    return UnlearningTask(**{**arguments, **changes})


def test_resources_are_files_of_the_method(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("x")
    task = rebuilt(task_of(), resources=tmp_path)
    assert task.resource("table.txt").read_text() == "x"
    with pytest.raises(UndeclaredAccess, match="no resource 'other'"):
        task.resource("other")
    with pytest.raises(UndeclaredAccess):
        task_of().resource("table.txt")


def test_artefacts_are_read_only_copies() -> None:
    stored = {"codes": torch.ones(2)}
    task = rebuilt(task_of(), artefacts=stored)
    with pytest.raises(TypeError):
        task.artefacts["codes"] = torch.zeros(2)  # type: ignore[index]
    task.artefacts["codes"].zero_()
    assert stored["codes"].tolist() == [1.0, 1.0]

"""AMUN: the adversarial set, what it is trained with, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.errors import UserError
from raybench.methods.amun import AmunHparams, _attack
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_adversarial_set_is_wrong_near_and_what_the_original_answers() -> None:
    """The self-check of the specification, with the radius of the pilot."""
    task = make_task("amun", model="mlp", samples=300)
    made = _attack(task, AmunHparams())
    clean, labels = task.forget.tensors()
    with torch.no_grad():
        assert torch.equal(task.model(task.from_pixels(made["images"])).argmax(1), made["answers"])
    assert bool(made["found"].all())
    assert not bool((made["answers"] == labels).any())
    distance = (made["images"] - task.to_pixels(clean)).flatten(1).norm(dim=1)
    assert torch.allclose(distance, made["distance"], atol=1e-5)
    assert 0.05 < float(distance.median()) < 5.0
    assert float(made["images"].min()) >= 0.0
    assert float(made["images"].max()) <= 1.0
    assert not any(p.grad is not None or not p.requires_grad for p in task.model.parameters())


def trained_on(monkeypatch: pytest.MonkeyPatch, task: UnlearningTask, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def fit(model: nn.Module, split: Any, recipe: Any, **_: Any) -> None:
        found.update(batch=next(split.batches(10_000)), recipe=recipe)

    monkeypatch.setattr("raybench.mechanisms.finetuning.fit", fit)
    run_method("amun", task, **options)
    return found


@pytest.mark.parametrize(
    ("data", "beside"), [("all", [FORGET, RETAIN]), ("retain", [RETAIN]), ("forget", [FORGET]), ("alone", [])]
)
def test_what_is_trained_on(monkeypatch: pytest.MonkeyPatch, data: str, beside: list[str]) -> None:
    needs = frozenset({FORGET, *beside})  # nothing else is touched
    task = make_task("amun", model="mlp", samples=300, needs=needs)
    images, labels = trained_on(monkeypatch, task, data=data)["batch"]
    gone = len(task.forget)
    with torch.no_grad():
        assert torch.equal(task.model(images[:gone]).argmax(1), labels[:gone])
    assert not bool((labels[:gone] == task.forget.targets).any())
    rest = [task._splits[part].targets for part in beside]
    assert labels[gone:].tolist() == torch.cat([*rest, labels[:0]]).tolist()


def test_learning_rate_drops_every_lr_step_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(lr_step: int) -> list[float]:
        task = make_task("amun", model="mlp", samples=300)
        recipe = trained_on(monkeypatch, task, lr=1.0, epochs=7, lr_step=lr_step)["recipe"]
        return [recipe.lr_at(epoch * 3 + step, 21) for epoch in range(7) for step in (0, 2)]

    assert rates(3) == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 2)
    assert rates(1) == pytest.approx([10.0**-e for e in range(7) for _ in range(2)])
    assert rates(10) == [1.0] * 14


def test_forgets_and_keeps_without_any_retain_data() -> None:
    """A whole class by D_A alone. With D_f and its true labels beside, as AMUN is published, a class is not unlearnt:
    samples are to end where unseen ones are, which is near their true labels."""
    task = make_task("amun", needs=frozenset({FORGET}))
    model = run_method("amun", task, tiny=False, lr=0.01, lr_step=10, data="alone", batch_size=32)
    assert accuracy(model, task, FORGET) < 0.3
    assert accuracy(model, task, RETAIN) > 0.9
    assert task.reported.scalars["attack_found"] == 1.0
    assert task.reported.scalars["attack_distance"] > 0.0


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("amun", bench=bench)
        before: dict[str, Tensor] = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("amun", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


def test_cost_checkpoints_and_values() -> None:
    task = make_task("amun", model="mlp", samples=300, needs=frozenset({FORGET}))
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("amun", task, epochs=3, data="alone", radius=50.0, attack_steps=50)
    assert steps == [1, 2, 3]
    assert 3 * len(task.forget) < task._passes.backward < (3 + 50) * len(task.forget)
    with pytest.raises(UndeclaredAccess):
        run_method("amun", make_task(model="mlp", samples=300, needs=frozenset({FORGET})), data="all")
    with pytest.raises(UserError, match="lr_step must be at least 1, got 0"):
        run_method("amun", make_task("amun", model="mlp", samples=300), lr_step=0)

"""SalUn: the mask, what it holds, the soft form, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.errors import UserError
from raybench.mechanisms.masking import select_top
from raybench.methods.salun import SalUnHparams, _salient
from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method

SMALL: dict[str, Any] = {"model": "mlp", "samples": 300}


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def start_of(task: UnlearningTask) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in task.model.named_parameters()}


def test_mask_of_the_specification() -> None:
    size = {"a": torch.tensor([0.1, -3.0, 0.5, 2.0, -0.2, 1.0]).abs()}
    mask = select_top(size, 0.5)
    assert mask["a"].tolist() == [False, True, False, True, False, True]


def test_mask_is_the_top_of_the_summed_batch_gradients_over_all_tensors() -> None:
    task = make_task("salun", **SMALL)
    mask = _salient(task, SalUnHparams(share=0.1, batch_size=16))
    total = [torch.zeros_like(p) for p in task.model.parameters()]
    for images, labels in task.forget.batches(16):
        loss = nn.functional.cross_entropy(task.model(images), labels)
        for sum_, g in zip(total, torch.autograd.grad(loss, list(task.model.parameters())), strict=True):
            sum_ += g
    size = torch.cat([t.abs().flatten() for t in total])
    chosen = torch.cat([mask[name].flatten() for name, _ in task.model.named_parameters()])
    count = int(0.1 * len(size))
    assert int(chosen.sum()) == count
    assert float(size[chosen].min()) >= float(size[~chosen].max())  # pixels that are always black tie
    assert len({float(mask[name].float().mean()) for name in mask}) > 1  # not a share of each tensor


@pytest.mark.parametrize("objective", ["sequential", "mix", "weighted"])
def test_exact_freezing_holds_and_the_old_code_leaks(objective: str) -> None:
    def moved(freeze: str) -> tuple[float, float]:
        task = make_task("salun", **SMALL)
        before, mask = start_of(task), _salient(task, SalUnHparams(batch_size=64))
        model = run_method("salun", task, objective=objective, freeze=freeze, weight_decay=5e-4)
        change = {name: (p.detach() - before[name]).abs() for name, p in model.named_parameters()}
        return tuple(  # type: ignore[return-value]
            max(float((change[n] * (m if inside else ~m)).max()) for n, m in mask.items()) for inside in (False, True)
        )

    outside, inside = moved("exact")
    assert outside == 0.0
    assert inside > 0.0
    leaked, _ = moved("grad_only")
    assert leaked > 0.0


def test_a_mask_of_everything_is_random_label() -> None:
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2}
    masked = run_method("salun", make_task("salun", **SMALL), share=1.0, **options)
    plain = run_method("random_label", make_task("random_label", **SMALL), **options)
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), plain.parameters(), strict=True))


def test_weighted_objective_is_the_papers_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of 2 on wrong labels of D_f and 0.5 on D_r give 2 + alpha 0.5."""
    task, found = make_task("salun", **SMALL), []
    images_of_d_f = {image.numpy().tobytes() for image in task.forget.tensors()[0]}

    def stub(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.tensor([2.0 if image.numpy().tobytes() in images_of_d_f else 0.5 for image in batch[0]])

    def fit(model: nn.Module, split: Any, recipe: Any, *, loss: Any, **_: Any) -> None:
        found.append(float(loss(model, next(split.batches(recipe.batch_size))).mean()))

    monkeypatch.setattr("raybench.mechanisms.finetuning.fit", fit)
    monkeypatch.setattr("raybench.methods.salun._salient", lambda task, hp: {})
    monkeypatch.setattr(task, "_loss", stub)
    run_method("salun", task, objective="weighted", alpha=3.0)
    assert found == [pytest.approx(3.5)]


def test_soft_form_keeps_the_smallest_changes_at_zero() -> None:
    """After one single step a share of 1 - ``share`` has not moved, and the rest has moved less by one amount."""
    options: dict[str, Any] = {"epochs": 1, "objective": "mix", "batch_size": 10_000, "eval_mode": True}
    task = make_task("salun", **SMALL)
    before = torch.cat([v.flatten() for v in start_of(task).values()])

    def change(**more: Any) -> Tensor:
        model = run_method("salun", make_task("salun", **SMALL), **options, **more)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before

    free, shrunk = change(share=1.0), change(share=0.3, form="soft")
    still = int(0.7 * len(before))
    assert int((shrunk == 0).sum()) >= still
    by = free.abs().sort().values[still - 1]
    assert torch.allclose(shrunk, free.sign() * (free.abs() - by).clamp(min=0.0), atol=1e-6)
    assert torch.equal(change(share=1.0, form="soft"), free)


def test_forgets_and_keeps() -> None:
    task = make_task("salun")
    model = run_method("salun", task, tiny=False, lr=0.01, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.3
    assert accuracy(model, task, RETAIN) > 0.95


def test_cost_checkpoints_and_what_is_reported() -> None:
    task, steps = make_task("salun", **SMALL), []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("salun", task, epochs=3, share=0.1)
    gone, kept = len(task.forget), len(task.retain)
    assert task._passes.backward == pytest.approx(gone + 3 * (gone + kept))
    assert steps == [1, 2, 3]
    assert task.reported.scalars["selected"] == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(UserError, match=r"share must be in \[0, 1\], got 2"):
        run_method("salun", make_task("salun", **SMALL), share=2.0)


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("salun", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("salun", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


def test_d_f_alone_touches_no_retained_sample() -> None:
    task = make_task("salun", samples=300, needs=frozenset({FORGET}))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    model = run_method("salun", task, objective="forget_only", lr=0.05)
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())

"""Random label: what each variant trains on, in which order, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.relabelling import random_labels
from raybench.registry import FORGET, RETAIN
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("exclusive", "share", "within"), [(False, 0.1, 0.0021), (True, 0.0, 0.0)])
def test_share_of_true_labels(exclusive: bool, share: float, within: float) -> None:
    """Drawn from all ten classes, a tenth of 100 000 labels is the true one; two standard errors are 0.0019."""
    labels = torch.arange(100_000) % 10
    drawn = random_labels(labels, 10, torch.Generator().manual_seed(0), exclusive=exclusive)
    assert abs(float((drawn == labels).double().mean()) - share) <= within
    assert set(drawn.tolist()) == set(range(10))


def seen_labels(**options: Any) -> tuple[list[Tensor], UnlearningTask]:
    """Labels of every batch, and the task."""
    task, seen = make_task("random_label", model="mlp", samples=300), []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[1])
        losses: Tensor = model(batch[0]).sum(1) * 0.0
        return losses

    task._loss = loss
    run_method("random_label", task, epochs=2, **options)
    return seen, task


def test_sequential_goes_through_d_f_first_and_then_d_r() -> None:
    seen, task = seen_labels(batch_size=10)
    gone, kept = len(task.forget), len(task.retain)
    first, after = -(-gone // 10), -(-kept // 10)
    assert len(seen) == 2 * (first + after)
    epochs = seen[: first + after], seen[first + after :]
    for epoch in epochs:
        relabelled, rest = torch.cat(epoch[:first]), torch.cat(epoch[first:])
        assert len(relabelled) == gone
        assert not bool((relabelled == 0).any())  # class 0 is what they all were
        assert sorted(rest.tolist()) == sorted(task.retain.targets.tolist())
    drawn = [torch.cat(epoch[:first]).bincount(minlength=10).tolist() for epoch in epochs]
    assert drawn[0] != drawn[1]  # redrawn; counts do not depend on the order of the pass


def test_once_drawn_labels_stay() -> None:
    seen, _ = seen_labels(batch_size=1000, variant="forget_only", redraw=False)
    assert seen[0].bincount(minlength=10).tolist() == seen[1].bincount(minlength=10).tolist()


def test_mix_shuffles_both_into_one() -> None:
    seen, task = seen_labels(batch_size=50, variant="mix")
    gone, kept = len(task.forget), len(task.retain)
    assert len(seen) == 2 * -(-(gone + kept) // 50)
    epoch = torch.cat(seen[: len(seen) // 2])
    extra = epoch.bincount(minlength=10) - task.retain.targets.bincount(minlength=10)
    assert int(extra.sum()) == gone
    assert bool((extra >= 0).all())
    assert int(extra[0]) == 0


def test_forget_only_touches_no_retain_data() -> None:
    task = make_task("random_label", model="mlp", samples=300, needs=frozenset({FORGET}))
    run_method("random_label", task, variant="forget_only")
    with pytest.raises(UndeclaredAccess):
        run_method("random_label", make_task(model="mlp", samples=300, needs=frozenset({FORGET})), variant="mix")


@pytest.mark.parametrize("variant", ["sequential", "mix"])
def test_forgets_and_keeps(variant: str) -> None:
    task = make_task("random_label")
    model = run_method("random_label", task, tiny=False, variant=variant, lr=0.01, epochs=10, batch_size=16)
    assert accuracy(model, task, FORGET) < 0.3
    assert accuracy(model, task, RETAIN) > 0.95


def test_batch_norm_buffers_move_unless_in_evaluation_mode() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 4),))

    def moved(**options: Any) -> bool:
        task = make_task("random_label", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        run_method("random_label", task, epochs=1, **options)
        return any(not torch.equal(before[key], value) for key, value in task.model.named_buffers())

    assert moved()
    assert not moved(eval_mode=True)


@pytest.mark.parametrize(("variant", "retained"), [("sequential", 1), ("mix", 1), ("forget_only", 0)])
def test_cost_and_checkpoints(variant: str, retained: int) -> None:
    task, steps = make_task("random_label", model="mlp", samples=300), []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("random_label", task, epochs=3, variant=variant)
    assert task._passes.backward == pytest.approx(3 * (len(task.forget) + retained * len(task.retain)))
    assert steps == [1, 2, 3]

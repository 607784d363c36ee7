"""SCRUB: the divergence and its direction, the zero first pass, the schedule, rewinding, and that it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.mechanisms.distillation import kl_to_teacher
from raybench.methods.scrub import matched_error, wrong
from raybench.registry import FORGET, RETAIN, SAMPLE, VALIDATION
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import make_bench, make_task, run_method

EVERYTHING = 10_000  # samples a step


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    return 1.0 - float(wrong(model, task._splits[part]).mean())


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "value"),
    [
        ((1.0, 0.0), (0.0, 0.0), 2.0, 0.123719),
        ((0.0, 0.0), (1.0, 0.0), 2.0, 0.121199),  # the other direction
        ((2.0, 0.0, -1.0), (0.5, 1.0, 0.0), 1.0, 0.721587),
        ((2.0, 0.0, -1.0), (0.5, 1.0, 0.0), 2.0, 0.747644),
        ((2.0, 0.0, -1.0), (0.5, 1.0, 0.0), 4.0, 0.732340),
    ],
)
def test_divergence_is_the_specifications(
    student: tuple[float, ...], teacher: tuple[float, ...], temperature: float, value: float
) -> None:
    found = temperature**2 * kl_to_teacher(torch.tensor([teacher]), torch.tensor([student]), temperature)
    assert float(found) == pytest.approx(value, abs=1e-5)


def run(model: str = "mlp", **options: Any) -> tuple[UnlearningTask, nn.Module]:
    task = make_task("scrub", bench=make_bench(model, samples=300))
    return task, run_method("scrub", task, tiny=False, **options)


def test_first_pass_over_forget_set_is_a_no_op() -> None:
    """Student = teacher: the gradient is zero, so a run with it equals one without, up to what rounding leaves."""
    results = []
    for size in (8, EVERYTHING):
        _, model = run(lr=0.01, epochs=1, max_epochs=1, forget_batch_size=size, batch_size=EVERYTHING, weight_decay=0)
        results.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.allclose(results[0], results[1], atol=1e-6)
    _, model = run(lr=0.01, epochs=1, max_epochs=1, forget_batch_size=8, batch_size=EVERYTHING, weight_decay=0.1)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert float((moved - results[0]).norm()) > 1e-3  # decay breaks the tie


def test_two_epochs_are_the_plain_loop() -> None:
    """Climb, descend, climb, descend, written out with torch alone; the rate falls after epoch 1."""
    options = {"lr": 0.02, "epochs": 2, "max_epochs": 2, "alpha": 0.3, "gamma": 0.8, "temperature": 2.0}
    options |= {"batch_size": EVERYTHING, "forget_batch_size": EVERYTHING, "decay_after": (1,), "decay": 0.5}
    task, found = run(**options)
    bench = make_bench("mlp", samples=300)
    model, teacher = (make_task("scrub", bench=bench).model for _ in range(2))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)

    def divergence(x: Tensor) -> Tensor:
        target = F.softmax(teacher(x).detach() / 2.0, dim=1)
        return 4.0 * F.kl_div(F.log_softmax(model(x) / 2.0, dim=1), target, reduction="batchmean")

    for lr in (0.02, 0.01):
        optimiser.param_groups[0]["lr"] = lr
        for part in (FORGET, RETAIN):
            x, y = task._splits[part].tensors()
            loss = -divergence(x) if part == FORGET else 0.8 * F.cross_entropy(model(x), y) + 0.3 * divergence(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_rewinds_to_the_epoch_nearest_the_reference() -> None:
    task, states = make_task("scrub", kind=SAMPLE), []
    task._on_checkpoint = lambda model, *_: states.append(
        (float(wrong(model, task.forget).mean()), {k: v.clone() for k, v in model.state_dict().items()})
    )
    options = {"lr": 0.02, "epochs": 5, "max_epochs": 3, "batch_size": 16, "clip_norm": 2.0, "alpha": 0.1}
    found = run_method("scrub", task, tiny=False, rewind=True, **options)
    last = task.model
    last.load_state_dict(states[-1][1])
    errors = wrong(last, task.validation)
    reference = matched_error(errors, task.validation.targets, task.forget.targets)
    assert task.reported.scalars["reference_error"] == pytest.approx(reference)
    gaps = [abs(error - reference) for error, _ in states]
    chosen = int(task.reported.scalars["rewound_to"]) - 1
    assert gaps[chosen] == min(gaps) < max(gaps)
    assert found is last
    run_method("scrub", again := make_task("scrub", kind=SAMPLE), tiny=False, rewind=True, **options)
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, states[chosen][1][key])


def test_reference_has_the_class_shares_of_the_forget_set() -> None:
    errors, labels = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 2])
    assert matched_error(errors, labels, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.375)
    assert matched_error(errors, labels, torch.tensor([0, 7])) == pytest.approx(0.5)  # nobody has class 7
    assert matched_error(errors, labels, torch.tensor([7])) == pytest.approx(0.25)


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("scrub")
    options = {"lr": 0.02, "epochs": 8, "max_epochs": 5, "batch_size": 16, "clip_norm": 2.0, "alpha": 0.1}
    model = run_method("scrub", task, tiny=False, forget_batch_size=16, **options)
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > 0.97


def test_cost_and_data() -> None:
    task = make_task("scrub", bench=make_bench("mlp", samples=300), needs=frozenset({FORGET, RETAIN}))
    run_method("scrub", task, epochs=3, max_epochs=2)
    assert task._passes.backward == pytest.approx(2 * len(task.forget) + 3 * len(task.retain))
    assert task._passes.forward == pytest.approx(2 * task._passes.backward)  # the teacher's too
    with pytest.raises(UndeclaredAccess, match=VALIDATION):
        run_method("scrub", task, rewind=True)

"""ERM-KTP: gated training, the head and the masked transfer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.gated_training import scaled_penalty
from raybench.mechanisms.gates import unrelated
from raybench.methods.erm_ktp import ErmTraining, train_with_gates
from raybench.registry import FORGET, RETAIN
from raybench.seeding import torch_generator
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method
from raybench.training import Recipe, TrainingJob

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05, augment=False, schedule="none")


def job_of(hparams: ErmTraining, recipe: Recipe = RECIPE) -> TrainingJob:
    bench = make_bench("lenet5", samples=120)
    assert bench.train is not None
    return TrainingJob(
        train=bench.train.bound(torch_generator("order", 7)),
        recipe=recipe,
        hparams=hparams,
        seed=7,
        build=bench.build,
        num_classes=10,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("training", 7),
        device=torch.device("cpu"),
    )


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_two_epochs_are_plain_and_the_third_is_gated_by_the_label() -> None:
    plain = job_of(ErmTraining())
    model = plain.new_model()
    plain.fit(model, dataclasses.replace(RECIPE, epochs=2))
    two = train_with_gates(job_of(ErmTraining(), dataclasses.replace(RECIPE, epochs=2)))
    assert all(torch.equal(a, two.model.state_dict()[name]) for name, a in model.state_dict().items())
    assert two.artefacts["gates"].unique().tolist() == [1.0]  # clipped: each row's largest is 1
    three = train_with_gates(job_of(ErmTraining(penalty=1.0), dataclasses.replace(RECIPE, epochs=3)))
    gates = three.artefacts["gates"]
    assert bool((gates.amax(dim=1) == 1.0).all())
    assert 0.0 <= float(gates.min()) < 1.0


def test_one_gated_step_by_hand() -> None:
    """The third epoch's only step from the state after two: gates move by the gradient of both loss terms."""
    recipe = dataclasses.replace(RECIPE, batch_size=1000, momentum=0.0, weight_decay=0.0)
    before = train_with_gates(job_of(ErmTraining(), dataclasses.replace(recipe, epochs=2)))
    after = train_with_gates(job_of(ErmTraining(penalty=0.5), dataclasses.replace(recipe, epochs=3)))
    images, labels = job_of(ErmTraining()).train.tensors()
    gates = before.artefacts["gates"].clone().requires_grad_()
    model = before.model.train()
    maps = images
    for stage in model.stages():  # type: ignore[operator]
        maps = stage(maps)
    logits = model.head(model.neck(maps * gates.T[labels][:, :, None, None]))  # type: ignore[operator]
    overlap = sum(gates[:, a] @ gates[:, b] for a in range(10) for b in range(a + 1, 10))
    penalty = torch.relu(gates.sum() - 0.1 * gates.numel()) + 0.1 * overlap
    (nn.functional.cross_entropy(logits, labels) + 0.5 * penalty).backward()
    assert gates.grad is not None
    moved = gates.detach() - recipe.lr * gates.grad
    expected = (moved / moved.max(dim=1, keepdim=True).values).clamp(0.0, 1.0)
    torch.testing.assert_close(after.artefacts["gates"], expected, rtol=1e-4, atol=1e-5)


def test_penalty_moves_the_gates_as_far_as_the_official_run() -> None:
    """196 steps in each of 200 epochs at 0.1, 0.01, 0.001 are the official run: its penalty is 1e-3."""
    job = job_of(ErmTraining(), Recipe(epochs=200, batch_size=1, lr=0.1, schedule="step", milestones=(0.5, 0.75)))
    job.train = job.train.subset(torch.arange(196) % len(job.train))
    assert scaled_penalty(job) == pytest.approx(1e-3, rel=0.05)
    assert scaled_penalty(job_of(ErmTraining(), dataclasses.replace(RECIPE, epochs=2))) == 0.0


def test_head_and_what_is_matched() -> None:
    """Zero rows and biases, no masked columns; a student that is the masked teacher already has no loss."""
    bench = make_bench("resnet8", samples=60, training="erm_ktp", model_options=(("width", 4),))
    gates = torch.zeros(16, 10)
    gates[torch.arange(16), torch.arange(16) % 10] = 1.0  # channels 0 and 10 belong to class 0
    task = make_task("erm_ktp", bench=with_gates(bench, gates))
    original = {name: t.clone() for name, t in task.model.head.state_dict().items()}  # type: ignore[union-attr]
    student = run_method("erm_ktp", task, epochs=1)
    keep = unrelated(gates, (0,)).float()
    expected = original["weight"] * keep
    expected[0] = 0.0
    torch.testing.assert_close(student.head.weight, expected, rtol=0, atol=0)
    torch.testing.assert_close(student.head.bias[1:], original["bias"][1:], rtol=0, atol=0)
    assert float(student.head.bias[0]) == 0.0
    assert task.reported.scalars["channels_kept"] == pytest.approx(14 / 16)


def with_gates(bench: Bench, gates: Tensor) -> Bench:
    return dataclasses.replace(bench, original=dataclasses.replace(bench.original, artefacts={"gates": gates}))


@pytest.mark.parametrize("mask_maps", [True, False])
def test_loss_at_the_masked_teacher(mask_maps: bool) -> None:
    """A student equal to the teacher, with all channels kept, has nothing to learn: no gradient at all."""
    bench = with_gates(make_bench("lenet5", training="erm_ktp", samples=300), torch.ones(16, 10))
    task = make_task("erm_ktp", bench=bench)
    task.forget_classes = ()  # nothing masked, nothing zeroed
    task.new_model = lambda: copy.deepcopy(task.model).requires_grad_(True)  # type: ignore[method-assign]
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    student = run_method("erm_ktp", task, epochs=1, weight_decay=0.0, mask_maps=mask_maps)
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())


@pytest.mark.parametrize(("model", "lr"), [("mlp", 0.1), ("lenet5", 0.03)])
def test_forgets_and_keeps(model: str, lr: float) -> None:
    task = make_task("erm_ktp", model=model)
    assert accuracy(task.model, task, RETAIN) > 0.95
    assert accuracy(task.model, task, FORGET) > 0.95
    student = run_method("erm_ktp", task, tiny=False, lr=lr)
    assert 0.2 < task.reported.scalars["channels_kept"] < 1.0
    assert accuracy(student, task, FORGET) < 0.1
    assert accuracy(student, task, RETAIN) > 0.8

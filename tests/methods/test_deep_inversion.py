import copy

import pytest
import torch

from raybench.mechanisms import inversion_lessons as module
from raybench.mechanisms.distillation import js_divergence
from raybench.mechanisms.inversion import recorded_norm_inputs, statistics_distance
from raybench.methods.deep_inversion import DeepInversionHparams
from raybench.registry import METHODS
from raybench.testing import make_bench, make_task, run_method

NORMED = {"model": "allcnn", "samples": 300, "model_options": (("width", 4),)}
MADE = {"images_per_class": 12, "inversion_batch": 108, "inversion_steps": 80, "batch_size": 32, "epochs": 12}


def accuracy(model, split):
    images, labels = split.tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def watched(**bench_options):
    """A task, and what it asks of ``once``: name -> (value, inputs)."""
    task, asked = make_task("deep_inversion", **bench_options), {}
    once = task._once

    def spy(name, compute, inputs):
        value = once(name, compute, inputs)
        asked[name] = (value["value"], dict(inputs))
        return value

    task._once = spy
    return task, asked


def test_defaults_are_those_of_the_source():
    hp = DeepInversionHparams()
    assert (hp.inversion_batch, hp.inversion_steps, hp.images_per_class) == (1000, 2000, 6000)
    assert (hp.statistics, hp.first_multiplier, hp.total_variation, hp.l2) == (0.05, 10.0, 1e-4, 1e-5)
    assert (hp.epochs, hp.lr, hp.clip_value, hp.weight_decay, hp.student) == (50, 1e-3, 0.1, 1e-4, "hard")
    made = hp.inversion()
    assert (made.lr, made.betas, made.warmup, made.cosine, made.jitter) == (0.2, (0.5, 0.9), 100, True, 0)


@pytest.mark.parametrize("student", ["hard", "distilled"])
def test_student_learns_the_remaining_classes_and_never_the_forgotten_one(student):
    bench = make_bench("mlp")
    options = {**MADE, "statistics": 0.0, "student": student, "inversion_lr": 0.1, "lr": 3e-3, "epochs": 30}
    result = run_method("deep_inversion", make_task("deep_inversion", bench=bench), tiny=False, **options)
    assert accuracy(bench.original.model, bench.splits["forget"]) > 0.95
    assert accuracy(result, bench.splits["forget"]) == 0.0
    assert accuracy(result, bench.splits["retain"]) > 0.35  # chance is 1 in 9


def test_images_are_recognised_and_match_the_statistics_of_the_original():
    distances = []
    for weight in (0.0, 1.0):
        task, asked = watched(**NORMED)
        original = copy.deepcopy(task.model)
        run_method(
            "deep_inversion",
            task,
            **{
                **MADE,
                "epochs": 1,
                "images_per_class": 6,
                "inversion_batch": 54,
                "inversion_steps": 60,
                "statistics": weight,
                "first_multiplier": 1.0,
            },
        )
        images = asked["images"][0]
        labels = torch.arange(1, 10).repeat(6)
        with torch.no_grad(), recorded_norm_inputs(original) as met:
            assert (original(images).argmax(1) == labels).double().mean() > 0.3  # chance is 1 in 10
        distances.append(float(statistics_distance(met)))
    assert distances[1] < 0.5 * distances[0]


def test_images_are_made_once_for_all_students_and_anew_for_other_settings():
    inputs = []
    for overrides in ({}, {"student": "distilled", "lr": 3e-3, "epochs": 1}, {"total_variation": 1e-3}, {"clip": True}):
        task, asked = watched(model="lenet5", samples=300)
        run_method("deep_inversion", task, **overrides)
        inputs.append(asked["images"][1])
    assert inputs[0] == inputs[1]
    assert inputs[0] != inputs[2]
    assert inputs[0] != inputs[3]


def test_only_remaining_classes_evenly_and_in_the_range_of_pixels_when_clipped():
    task, asked = watched(model="lenet5", samples=300)
    labels = []
    loss = task.loss
    task.loss = lambda model, batch: labels.append(batch[1]) or loss(model, batch)
    run_method("deep_inversion", task, clip=True, epochs=1)
    assert torch.equal(torch.cat(labels).bincount(minlength=10), torch.tensor([0] + [3] * 9))
    pixels = task.to_pixels(asked["images"][0])
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5
    assert task.reported.images["inverted"].shape == (27, 1, 28, 28)


def test_distilled_student_minimises_the_divergence_from_the_softmax_over_the_remaining_classes():
    """The first step of the student, against Adam on the loss written out in float64."""
    task, asked = watched(model="mlp", samples=300)
    start = {}
    build = task.new_model

    def remember():
        start["model"] = build()
        start["copy"] = copy.deepcopy(start["model"]).double()
        return start["model"]

    task.new_model = remember
    options = {"epochs": 1, "batch_size": 27, "student": "distilled", "clip_value": 1e-4, "weight_decay": 0.0}
    result = run_method("deep_inversion", task, **options)
    images, student = asked["images"][0].double(), start["copy"]
    teacher = copy.deepcopy(make_bench("mlp", samples=300).original.model).double()
    loss = 0.0
    for image in images:
        t, s = teacher(image[None])[0, 1:].softmax(0), student(image[None])[0].log_softmax(0)
        loss = loss + sum(t[k] * (t[k].log() - s[k + 1]) for k in range(9)) / len(images)
    gradient = torch.autograd.grad(loss, list(student.parameters()))
    for after, before, g in zip(result.parameters(), student.parameters(), gradient, strict=True):
        g = g.clamp(-1e-4, 1e-4)
        expected = before - 1e-3 * g / (g.abs() + 1e-8)
        sure = g.abs() > 1e-6
        assert (after.double() - expected).abs()[sure].max() < 1e-5


def test_adaptive_images_disagree_with_the_student_more_than_plain_ones():
    found = []
    for weight in (0.0, 30.0):
        task, made = make_task("deep_inversion", model="mlp", samples=300), []
        invert = module.invert

        def spy(*args, _invert=invert, _made=made, **kwargs):
            images = _invert(*args, **kwargs)
            _made.append(images)
            return images

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "invert", spy)
            hp = DeepInversionHparams(
                images_per_class=4, inversion_batch=18, inversion_steps=40, statistics=0.0, adaptive=max(weight, 1e-9)
            )
            student = task.new_model()
            before = copy.deepcopy(student)
            module.compete(task, hp, student, torch.arange(1, 10).repeat(4))
        assert len(made) == 2
        with torch.no_grad():  # the first batch was made against the student as it came
            found.append(float(js_divergence(task.model(made[0]), before(made[0]), 3.0).mean()))
        assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), before.parameters(), strict=True))
        assert all(p.requires_grad for p in student.parameters())
    assert found[1] > 1.2 * found[0]


def test_adaptive_images_are_not_shared():
    task, asked = watched(model="lenet5", samples=300)
    steps = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("deep_inversion", task, adaptive=0.2)
    assert asked == {}
    assert steps == [1, 2]


def test_statistics_need_batch_norm():
    entry = METHODS["deep_inversion"]
    lenet, normed = make_bench("lenet5", samples=300).facts, make_bench(**NORMED).facts
    assert "set statistics: 0" in entry.skip(lenet, DeepInversionHparams())
    assert entry.skip(lenet, DeepInversionHparams(statistics=0.0)) is None
    assert entry.skip(normed, DeepInversionHparams()) is None
    with pytest.raises(ValueError, match="statistics must be 0"):
        run_method("deep_inversion", make_task("deep_inversion", model="lenet5", samples=300), statistics=0.05)


@pytest.mark.parametrize("field", ["images_per_class", "inversion_batch", "inversion_steps", "epochs"])
def test_counts_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        DeepInversionHparams(**{field: 0})

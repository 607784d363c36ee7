import copy
import math

import pytest
import torch

from raybench.mechanisms.distillation import class_balance
from raybench.mechanisms.transfer import Lesson
from raybench.methods.gkt_plus import GktPlusHparams, _FilteredTransfer
from raybench.registry import METHODS
from raybench.testing import make_bench, make_task, run_method

SMALL = {"batch_size": 32, "generator_width": 4, "latent_dim": 8, "student_steps": 2}
NORMED = {"model": "allcnn", "samples": 300, "model_options": (("width", 4),)}


def accuracy(model, split):
    images, labels = split.tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def transfer(bench=None, **overrides):
    task = make_task("gkt_plus", **(bench or {"model": "lenet5", "samples": 300}))
    return _FilteredTransfer(task, GktPlusHparams(**{**SMALL, "batch_statistics": 0.0, **overrides}))


def softmax(row):
    weights = [math.exp(z - max(row)) for z in row]
    return [w / sum(weights) for w in weights]


def test_defaults_are_those_of_the_authors():
    hp = GktPlusHparams()
    assert (hp.batch_statistics, hp.one_hot, hp.balance) == (1.0, 1.0, 1.0)
    assert (hp.pseudo_batches, hp.generator_steps, hp.student_steps, hp.batch_size) == (1000, 1, 10, 256)
    assert (hp.probability_cutoff, hp.student_lr, hp.generator_lr) == (0.01, 0.05, 1e-3)
    loop = transfer()
    assert loop.generator_optimiser.param_groups[0]["betas"] == (0.5, 0.999)
    assert loop.student_optimiser.param_groups[0]["momentum"] == 0.9


def test_learns_the_remaining_classes_and_not_the_forgotten_one_without_data():
    bench = make_bench("mlp")
    task = make_task("gkt_plus", bench=bench)
    options = {"pseudo_batches": 25, "batch_size": 64, "generator_width": 8, "proxies": 16, "inversion_steps": 10}
    student = run_method("gkt_plus", task, tiny=False, batch_statistics=0.0, check_every=10, student_lr=0.02, **options)
    assert accuracy(bench.original.model, bench.splits["forget"]) > 0.95
    assert accuracy(student, bench.splits["retain"]) > 0.5  # chance is 1 in 9
    assert accuracy(student, bench.splits["forget"]) < 0.1
    assert task.reported.scalars["share_taught"] == 1.0
    assert set(task.reported.images) == {"generated", "proxies"}


def test_generator_loss_equals_the_sum_written_out():
    """Adversarial term with the sign of the forget summand turned, batch statistics, one-hot and balance, by loops."""
    loop = transfer(NORMED, batch_statistics=0.5, one_hot=2.0, balance=3.0)
    loop.student.double()
    loop.teacher.double()
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = loop.generator_loss(images).item()
    seen = {}
    norms = [m for m in loop.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda m, x: seen.__setitem__(m, x[0])) for m in norms]
    with torch.no_grad():
        teacher = [softmax(row) for row in loop.teacher(images).tolist()]
        student = [softmax(row) for row in loop.student.eval()(images).tolist()]
    for handle in handles:
        handle.remove()
    adversarial = one_hot = 0.0
    for t, s in zip(teacher, student, strict=True):
        summands = [t[k] * math.log(t[k] / s[k]) for k in range(10)]
        adversarial += (-summands[0] + sum(summands[1:])) / 5
        one_hot -= math.log(max(t)) / 5
    mean = [sum(t[k] for t in teacher) / 5 for k in range(10)]
    balance = sum(p * math.log(p) for p in mean)
    statistics = 0.0
    for norm in norms:
        x = seen[norm].transpose(0, 1).flatten(1)
        centre, spread = x.mean(1), x.var(1, unbiased=False)
        statistics += math.sqrt(float(((centre - norm.running_mean) ** 2).sum()))
        statistics += math.sqrt(float(((spread - norm.running_var) ** 2).sum()))
    assert len(norms) == 8
    expected = -adversarial + 0.5 * statistics + 2.0 * one_hot + 3.0 * balance
    assert found == pytest.approx(expected, rel=1e-6)


def test_class_balance_is_least_for_even_predictions():
    even, odd = torch.eye(4) * 50.0, torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 4)
    assert class_balance(even).item() == pytest.approx(-math.log(4))
    assert class_balance(odd).item() == pytest.approx(0.0, abs=1e-6)


def test_losses_vanish_when_the_student_is_the_teacher():
    """With no class filtered out: the divergences, and their gradients."""
    loop = transfer(one_hot=0.0, balance=0.0, probability_cutoff=1.0)
    loop.student.load_state_dict(loop.teacher.state_dict())
    z = loop.generator.noise(32, loop.task.generator)
    images = loop.generator(z)
    pulled = torch.autograd.grad(loop.generator_loss(images), list(loop.generator.parameters()), retain_graph=True)
    assert max(float(g.abs().max()) for g in pulled) < 1e-4
    lesson = loop._lesson(z)
    loss = loop.student_loss(lesson)
    assert abs(loss.item()) < 1e-6
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, list(loop.student.parameters()))) < 1e-4


def test_lesson_keeps_every_sample_and_filters_all_forget_classes():
    loop = transfer()
    loop.task.forget_classes = (0, 3)
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 3
    loop.teacher = lambda images: logits
    lesson = loop.lesson(torch.zeros(6, 1, 28, 28))
    assert isinstance(lesson, Lesson)
    assert len(lesson.images) == 6
    over = logits.softmax(1)[:, [0, 3]] > 0.01
    assert over.any()
    assert torch.allclose(lesson.answers[:, [0, 3]][over], logits.amin(1, keepdim=True).expand(6, 2)[over], atol=1e-5)
    assert torch.equal(
        lesson.answers.argmax(1),
        logits[:, [1, 2, 4, 5, 6, 7, 8, 9]].argmax(1).apply_(lambda k: [1, 2, 4, 5, 6, 7, 8, 9][k]),
    )


def test_batch_norm_of_the_student_moves_in_lessons_only_and_the_teachers_never():
    loop = transfer(NORMED)

    def means(model):
        return [b.clone() for name, b in model.named_buffers() if name.endswith("running_mean")]

    teacher, student = means(loop.teacher), means(loop.student)
    loop.rounds = 1
    loop.begin_round()
    assert loop._generator_step(loop._noise())
    assert loop.student.training
    assert all(torch.equal(a, b) for a, b in zip(means(loop.student), student, strict=True))
    loop._teach(loop._noise())
    assert all(not torch.equal(a, b) for a, b in zip(means(loop.student), student, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(means(loop.teacher), teacher, strict=True))


def test_student_step_size_falls_along_a_cosine():
    loop, seen = transfer(pseudo_batches=4, student_steps=1), []
    for _ in range(4):
        loop.round()
        seen.append(loop.student_optimiser.param_groups[0]["lr"])
    assert seen == pytest.approx([0.05 * 0.5 * (1 + math.cos(math.pi * r / 4)) for r in range(4)])


def test_statistics_need_batch_norm():
    entry = METHODS["gkt_plus"]
    lenet, normed = make_bench("lenet5", samples=300).facts, make_bench(**NORMED).facts
    assert "set batch_statistics: 0" in entry.skip(lenet, GktPlusHparams())
    assert entry.skip(lenet, GktPlusHparams(batch_statistics=0.0)) is None
    assert entry.skip(normed, GktPlusHparams()) is None
    with pytest.raises(ValueError, match="batch_statistics must be 0"):
        run_method("gkt_plus", make_task("gkt_plus", model="lenet5", samples=300), batch_statistics=1.0)


@pytest.mark.parametrize("method", ["gkt_plus", "deep_inversion"])
def test_plan_skips_what_needs_statistics_that_the_model_lacks(make_spec, plan_of, method):
    """A row with its reason, whatever option of the model takes the batch norm away; with the weight at 0 it runs."""
    off = {"gkt_plus": "batch_statistics", "deep_inversion": "statistics"}[method]
    models = ["lenet5", {"name": "vgg8", "width": 2}, {"name": "vgg8", "width": 2, "batch_norm": False}]
    problem = {"dataset": "digits", "models": models, "scenarios": [{"name": "class", "classes": [0]}]}
    methods = [{"name": method, "variant": "with"}, {"name": method, "variant": "without", "hparams": {off: 0.0}}]
    lines = plan_of(make_spec(problems=[problem], methods=methods)).lines
    skips = {(line.cell.model.label, line.candidate.variant): line.skip for line in lines}
    assert len(skips) == 6
    skipped = {key for key, reason in skips.items() if reason}
    assert skipped == {("lenet5", "with"), ("vgg8(batch_norm=False, width=2)", "with")}
    assert skips["lenet5", "with"] == f"lenet5 has no batch norm with statistics to match; set {off}: 0"


def test_statistics_pull_the_generator_towards_those_of_the_teacher():
    distances = []
    for weight in (0.0, 1.0):
        bench = {"model": "allcnn", "samples": 300, "model_options": (("width", 4),)}
        loop = transfer(bench, batch_statistics=weight, one_hot=0.0, balance=0.0, generator_lr=1e-2)
        loop.begin_round()
        for _ in range(20):
            loop._generator_step(loop._noise())
        probe = copy.copy(loop)
        probe.hp = GktPlusHparams(**SMALL, batch_statistics=1.0, one_hot=0.0, balance=0.0)
        zero = copy.copy(loop)
        zero.hp = GktPlusHparams(**SMALL, batch_statistics=0.0, one_hot=0.0, balance=0.0)
        with torch.no_grad():
            images = loop.generator(loop._noise())
            distances.append(float(probe.generator_loss(images) - zero.generator_loss(images)))
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.parametrize("field", ["pseudo_batches", "student_steps", "proxies", "check_every"])
def test_counts_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        GktPlusHparams(**{field: 0})

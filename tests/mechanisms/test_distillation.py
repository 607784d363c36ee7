import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.mechanisms.distillation import (
    ProxyRule,
    adversarial_without,
    attention_loss,
    attention_map,
    entropy,
    forget_gate,
    js_divergence,
    kl_to_target,
    kl_to_teacher,
    move_forget_excess,
    retain_softmax,
    run_with_stages,
)
from raybench.registry import MODELS


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_torch_in_both_of_its_reductions():
    teacher, student = rand(6, 10), rand(6, 10, seed=1)
    pair = F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1)
    ours = kl_to_teacher(teacher, student, temperature=2.0).mean()
    assert torch.isclose(ours, F.kl_div(*pair, reduction="batchmean"), rtol=1e-12)
    with pytest.warns(UserWarning, match="batchmean"):  # the official convention: a mean over classes too
        official = F.kl_div(*pair, reduction="mean")
    assert torch.isclose(ours / 10, official, rtol=1e-12)


def test_kl_and_its_gradient_vanish_when_student_is_teacher():
    logits = rand(5, 4)
    student = logits.clone().requires_grad_(True)
    loss = kl_to_teacher(logits, student).mean()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.abs() < 1e-15
    assert gradient.abs().max() < 1e-15


def test_gate_on_logits_with_known_probabilities():
    logits = torch.zeros(3, 10)
    logits[0, 0] = 10.0  # p_0 = 0.9996
    logits[2, 0] = -5.0  # p_0 = 7.5e-4, H = 2.20 nats
    assert logits[0].softmax(0)[0] == pytest.approx(0.9996, abs=1e-4)
    assert logits[2].softmax(0)[0] == pytest.approx(7.5e-4, abs=1e-5)
    assert entropy(logits)[1] == pytest.approx(math.log(10))
    assert entropy(logits)[2] == pytest.approx(2.20, abs=0.005)
    assert forget_gate(logits, [0], 0.01).tolist() == [False, False, True]
    assert forget_gate(logits, [0], 0.01, entropy_cutoff=0.6).tolist() == [False, False, False]
    assert forget_gate(logits, [0], 0.01, entropy_cutoff=2.25).tolist() == [False, False, True]


def test_gate_of_several_classes_is_the_product_of_their_gates():
    logits = rand(400, 5) * 4
    both = forget_gate(logits, [1, 3], 0.05)
    assert torch.equal(both, forget_gate(logits, [1], 0.05) & forget_gate(logits, [3], 0.05))
    assert 0 < both.sum() < forget_gate(logits, [1], 0.05).sum()


def test_entropy_of_a_one_hot_teacher_is_zero_and_finite():
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])).item() == 0.0


def test_attention_map_of_a_constant_is_flat_and_of_unit_length():
    flat = attention_map(torch.full((2, 3, 4, 5), 2.5))
    assert flat.shape == (2, 20)
    assert torch.allclose(flat, torch.full((2, 20), 1 / math.sqrt(20)))
    assert torch.equal(attention_map(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 9))


def test_attention_loss_ignores_scale_and_stages_without_a_map():
    maps = [rand(4, 3, 6, 6), rand(4, 8)]
    scaled = [maps[0] * 3.0, maps[1] + 1.0]
    assert attention_loss(maps, scaled) < 1e-30
    other = [rand(4, 5, 6, 6, seed=1), maps[1]]
    expected = (attention_map(maps[0]) - attention_map(other[0])).square().sum() / (4 * 36)
    assert torch.isclose(attention_loss(maps, other).double(), expected, rtol=1e-6)
    assert attention_loss([], []) == 0.0


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_stages_come_with_the_logits_and_leave_no_hooks(name):
    model = MODELS[name].fn(10, (1, 28, 28)).eval()
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits, stages = run_with_stages(model, x)
    assert torch.equal(logits, model(x))
    assert len(stages) == len(model.stages())
    assert torch.equal(stages[0], model.stages()[0](x))
    assert not any(m._forward_hooks for m in model.modules())


class Always(nn.Module):
    """Predicts one class for all images, but the listed class for the first ``right`` images."""

    def __init__(self, answer, right=0, instead=0):
        super().__init__()
        self.answer, self.right, self.instead = answer, right, instead

    def forward(self, x):
        predicted = torch.full((len(x),), self.answer)
        predicted[: self.right] = self.instead
        return F.one_hot(predicted, 10).float()


def rule(n=100, patience=3):
    return ProxyRule(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), 10, patience)


PROBE, TEACHER = torch.zeros(8, 1), F.one_hot(torch.full((8,), 5), 10).float()


def test_rule_stops_after_three_violations_in_a_row_and_keeps_the_last_good_student():
    r = rule()
    assert not r.offer(Always(5), 1, PROBE, TEACHER)
    assert not r.offer(Always(0), 2, PROBE, TEACHER)
    assert not r.offer(Always(0), 3, PROBE, TEACHER)
    assert not r.offer(Always(5), 4, PROBE, TEACHER)  # in between: the count begins anew
    assert [r.offer(Always(0), s, PROBE, TEACHER) for s in (5, 6, 7)] == [False, False, True]
    assert (r.kept_step, r.kept.answer, r.kept_accuracy) == (4, 5, 0.0)


def test_rule_bound_is_chance_and_two_standard_errors():
    bound = 0.1 + 2 * math.sqrt(0.1 * 0.9 / 100)  # 0.16
    for right, violates in ((16, False), (17, True)):
        r = rule(patience=1)
        assert right / 100 <= bound + 1e-9 or violates
        assert r.offer(Always(5, right), 1, PROBE, TEACHER) is violates


def test_rule_prefers_agreement_with_the_teacher_then_the_later_student():
    r = rule()
    for step, student in enumerate((Always(5), Always(6), Always(5)), start=1):
        r.offer(student, step, PROBE, TEACHER)
    assert r.kept_step == 3
    r.offer(Always(7), 4, PROBE, TEACHER)
    assert r.kept_step == 3


def test_rule_keeps_the_least_violation_when_every_student_violates():
    r = rule()
    for step, right in enumerate((80, 40, 60), start=1):
        r.offer(Always(5, right), step, PROBE, TEACHER)
    assert r.kept_step == 2


def test_rule_looks_at_the_worst_class_and_keeps_a_copy():
    r = ProxyRule(torch.zeros(200, 1), torch.arange(2).repeat_interleave(100), 10, patience=1)
    student = Always(5, right=100, instead=0)  # class 0 always, class 1 never
    assert r.offer(student, 1, PROBE, TEACHER)
    assert r.kept_accuracy == 1.0
    assert r.kept is not student
    assert copy.deepcopy(r.kept).right == 100


# --- divergences of the improved transfer and of the distilled student: loops in float64 --------------------------


def softmax(row):
    weights = [math.exp(z - max(row)) for z in row]
    return [w / sum(weights) for w in weights]


def test_kl_to_target_equals_the_sum_written_out_with_zeros_in_the_target():
    student = rand(5, 4, seed=2)
    target = torch.tensor([[0.0, 0.5, 0.25, 0.25]] * 5, dtype=torch.float64)
    expected = [
        sum(t * math.log(t / s) for t, s in zip(row.tolist(), softmax(logits.tolist()), strict=True) if t)
        for row, logits in zip(target, student, strict=True)
    ]
    assert kl_to_target(target, student).tolist() == pytest.approx(expected, rel=1e-12)
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(kl_to_target(target, student).sum(), student)
    assert torch.allclose(gradient, student.softmax(1) - target)  # of a softmax cross-entropy


def test_js_divergence_equals_the_sum_written_out_is_symmetric_and_at_most_ln_2():
    a, b = rand(6, 5) * 3, rand(6, 5, seed=1) * 3
    expected = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        p, q = softmax([z / 3 for z in x]), softmax([z / 3 for z in y])
        m = [(s + t) / 2 for s, t in zip(p, q, strict=True)]
        halves = (sum(s * math.log(s / t) for s, t in zip(v, m, strict=True)) for v in (p, q))
        expected.append(sum(halves) / 2)
    assert js_divergence(a, b, 3.0).tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(js_divergence(a, b), js_divergence(b, a))
    assert js_divergence(a, a).abs().max() < 1e-15
    apart = js_divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert apart.item() == pytest.approx(math.log(2.0))


def test_retain_softmax_is_the_softmax_over_the_remaining_classes():
    logits = rand(4, 5)
    before = logits.clone()
    kept = retain_softmax(logits, [0, 3])
    assert torch.equal(logits, before)
    assert kept[:, [0, 3]].abs().max() == 0.0
    full = logits.softmax(1)[:, [1, 2, 4]]
    assert torch.allclose(kept[:, [1, 2, 4]], full / full.sum(1, keepdim=True))


def test_adversarial_term_turns_the_sign_of_the_forget_summands():
    teacher, student = rand(5, 4), rand(5, 4, seed=1)
    expected = []
    for x, y in zip(teacher.tolist(), student.tolist(), strict=True):
        summands = [t * math.log(t / s) for t, s in zip(softmax(x), softmax(y), strict=True)]
        expected.append(-summands[0] + summands[1] - summands[2] + summands[3])
    assert adversarial_without(teacher, student, [0, 2]).tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(adversarial_without(teacher, student, []), kl_to_teacher(teacher, student))
    assert adversarial_without(teacher, teacher, [1]).abs().max() < 1e-15


def test_maximising_the_adversarial_term_takes_mass_from_the_forget_class():
    teacher = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    student = torch.tensor([[-4.0, 0.0, 0.0, 0.0]], dtype=torch.float64)  # knows nothing of class 0
    for function, sign in (
        (lambda t: adversarial_without(t, student, [0]), -1),
        (lambda t: kl_to_teacher(t, student), 1),
    ):
        (gradient,) = torch.autograd.grad(function(teacher).sum(), teacher)
        assert math.copysign(1, gradient[0, 0]) == sign  # the plain divergence asks for more of it


def test_filter_moves_the_excess_of_forget_classes_and_keeps_the_sum():
    logits = rand(300, 6) * 4
    moved = move_forget_excess(logits, [1, 4], 0.05)
    changed = 0
    for row, after in zip(logits.tolist(), moved.tolist(), strict=True):
        p, expected = softmax(row), list(row)
        for c in (1, 4):
            if p[c] > 0.05:
                excess, expected[c] = row[c] - min(row), min(row)
                for k in (0, 2, 3, 5):
                    expected[k] += excess / 4
        changed += expected != row
        assert after == pytest.approx(expected, abs=1e-12)
    assert 0 < changed < 300
    assert torch.allclose(moved.sum(1), logits.sum(1))
    kept = (logits.softmax(1)[:, [1, 4]] <= 0.05).all(1)
    assert torch.equal(moved[kept], logits[kept])
    assert torch.equal(moved[:, [0, 2, 3, 5]].argsort(1), logits[:, [0, 2, 3, 5]].argsort(1))

"""What every metric that probes models must do, and the known answers: what is only hidden comes back at once."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.errors import MetricUnavailable
from raybench.mechanisms import relearning as mechanism
from raybench.metrics import DEFAULT_METRICS
from raybench.metrics import ain as ain_file
from raybench.metrics import relearn_attack as attack_file
from raybench.metrics.ain import ain
from raybench.metrics.layer_distance import layer_distance
from raybench.metrics.relearn_attack import relearn_attack, relearn_attack_1, relearn_attack_5, relearn_attack_20
from raybench.metrics.relearn_time import relearn_time
from raybench.metrics.zrf import code_score, paper_score, zrf, zrf_code
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import CLASSIFICATION, HIGHER, LOWER, MATCH_RETRAINED, METRICS, MetricEntry
from raybench.testing import make_bench, make_probe, make_retrained

ENTRIES = [entry for entry in METRICS if entry.probe and CLASSIFICATION in entry.tasks]  # others: test_denoising_run.py
every_probe = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
CONTEXT = MetricContext(10, forget_classes=(0,))


TINY = {"model": "mlp", "samples": 300}  # for what holds of any model; the known answers are of lenet5


def original(**bench: Any) -> nn.Module:
    return copy.deepcopy(make_bench(**bench).original.model)


def hidden(bias: float = -20.0, **bench: Any) -> nn.Module:
    """Forgetting in name only: the original, whose head never says class 0 any more."""
    model = original(**bench)
    with torch.no_grad():
        model.head.bias[0] = bias
    return model


def value_of(entry: MetricEntry, probe: Probe) -> float | str:
    try:
        return entry.fn(probe, CONTEXT)
    except MetricUnavailable as reason:
        return str(reason)


def test_the_registry_has_them_and_the_default_set_does_not() -> None:
    names = {entry.name for entry in ENTRIES}
    assert {"relearn_time", "ain", "layer_distance", "zrf", "zrf_code", "relearn_attack"} <= names
    assert not names & set(DEFAULT_METRICS)


@every_probe
def test_metadata(entry) -> None:
    assert entry.direction in {HIGHER, LOWER, MATCH_RETRAINED}
    assert entry.fn.__name__.rstrip("_") == entry.name
    assert entry.summary
    assert entry.unit
    assert not entry.final_only, "no search runs a probe anyway"
    assert not entry.pair or entry.direction in {HIGHER, LOWER}


@every_probe
def test_a_float_in_range_the_same_each_time_and_nothing_touched(entry) -> None:
    probe = make_probe(hidden(**TINY), **TINY)
    before, state = probe.splits["train"].images.clone(), torch.get_rng_state()
    value = value_of(entry, probe)
    assert value == value_of(entry, make_probe(hidden(**TINY), **TINY))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(probe.splits["train"].images, before)
    for mine, kept in ((probe.original, make_bench(**TINY).original.model), (probe.retrained, make_retrained(**TINY))):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), kept.state_dict().values(), strict=True)
        )
    assert type(value) is float, value
    low, high = entry.range
    assert low is None or value >= low
    assert high is None or value <= high


@every_probe
def test_frozen_weights_are_no_way_out(entry) -> None:
    frozen = hidden(**TINY).requires_grad_(False)
    assert value_of(entry, make_probe(frozen, **TINY)) == value_of(entry, make_probe(hidden(**TINY), **TINY))


@pytest.mark.parametrize("name", ["zrf", "zrf_code", "layer_distance"])
def test_sample_order_does_not_matter_where_nothing_is_drawn(name: str) -> None:
    entry = METRICS[name]
    probe = make_probe(hidden(**TINY), **TINY)
    forget = probe.splits["forget"]
    order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(3))
    other = dataclasses.replace(probe, splits={**probe.splits, "forget": forget.subset(order)})
    assert value_of(entry, other) == pytest.approx(value_of(entry, probe), abs=1e-6)  # float32 forward passes


def without_gradient() -> nn.Module:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = hidden(**TINY)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).detach()

    return Closed()


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(torch.ones(len(x), dtype=torch.int64), 10).float()


@pytest.mark.parametrize("fn", [relearn_time, ain, relearn_attack])
@pytest.mark.parametrize(
    ("model", "reason"),
    [(without_gradient, "no gradient"), (Nothing, "no parameters"), (lambda: hidden(-math.inf, **TINY), "not finite")],
)
def test_what_cannot_relearn_has_a_reason(fn, model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(MetricUnavailable, match=reason):
        fn(make_probe(model(), **TINY), CONTEXT)


# --- the generator and the networks of a probe -----------------------------------------------------------------------


def test_draws_depend_on_words_and_seed_but_not_on_the_model() -> None:
    one, other = make_probe(**TINY), make_probe(hidden(**TINY), **TINY)
    first = torch.rand(4, generator=one.generator("a"))
    assert torch.equal(first, torch.rand(4, generator=other.generator("a")))
    assert not torch.equal(first, torch.rand(4, generator=one.generator("b")))
    reseeded = dataclasses.replace(one, seed=("bench", 1))
    assert not torch.equal(first, torch.rand(4, generator=reseeded.generator("a")))
    assert torch.equal(one.build(0).head.weight, other.build(0).head.weight)
    assert not torch.equal(one.build(0).head.weight, one.build(1).head.weight)


# --- relearning ------------------------------------------------------------------------------------------------------


def test_one_step_of_relearning_against_a_closed_form() -> None:
    # w <- w - lr (g + pull (w - w0)); the pull is zero in the first step and known in the second.
    probe = make_probe()
    batch = mechanism.drawn(probe.splits["forget"], 8, probe.generator("x"))
    weight, steps = (
        probe.model.head.weight,
        mechanism.relearning(probe, probe.model, lambda: batch, lr=0.1, momentum=0.0, pull=0.5),
    )

    def gradient() -> Tensor:
        loss = F.cross_entropy(probe.model(batch[0]), batch[1])
        return torch.autograd.grad(loss, weight)[0]

    start = weight.detach().clone()
    g0 = gradient()
    assert next(steps) == 1
    first = weight.detach().clone()
    assert torch.allclose(first, start - 0.1 * g0, atol=1e-7)
    g1 = gradient()
    assert next(steps) == 2
    assert torch.allclose(weight, first - 0.1 * (g1 + 0.5 * (first - start)), atol=1e-7)


def test_loss_and_accuracy_are_weighted_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = make_probe(hidden(-4.0))
    split = probe.splits["train"]
    images, labels = split.tensors()
    with torch.no_grad():
        logits = probe.model(images)
    for size in (1024, 64, 7):
        monkeypatch.setattr(mechanism, "EVALUATION_BATCH", size)
        assert mechanism.mean_loss(probe, probe.model, split) == pytest.approx(
            float(F.cross_entropy(logits, labels)), rel=1e-5
        )
        assert mechanism.accuracy_on(probe.model, split) == float((logits.argmax(1) == labels).double().mean())


# --- known answers ---------------------------------------------------------------------------------------------------


def test_ain_of_the_retrained_model_is_one_and_of_the_original_least() -> None:
    assert ain(make_probe(make_retrained()), CONTEXT) == 1.0
    assert ain(make_probe(), CONTEXT) == 0.0
    assert 0.0 < ain(make_probe(hidden()), CONTEXT) < 0.5


def test_ain_takes_the_two_times_on_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    # A public framework takes both on the unlearned model: 1 for anything. Here the numbers are the models' own.
    asked: list[str] = []

    def batches(probe: Probe, model: nn.Module, whose: str) -> float:
        asked.append(whose)
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), make_retrained().parameters(), strict=True))
        assert same == (whose == "retrained")
        return 8.0 if whose == "retrained" else 2.0

    monkeypatch.setattr(ain_file, "_batches", batches)
    assert ain(make_probe(hidden()), CONTEXT) == 0.25
    assert sorted(asked) == ["retrained", "unlearned"]


def test_ain_without_a_denominator_has_a_reason() -> None:
    # Random samples: the retrained model knows them without having seen them.
    probe = make_probe(kind="sample", **TINY)
    probe = dataclasses.replace(probe, retrained=copy.deepcopy(probe.original))
    with pytest.raises(MetricUnavailable, match="no denominator"):
        ain(probe, CONTEXT)


def test_ties_at_the_cap_are_censored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ain_file, "LEAST_CAP", 1)
    with pytest.raises(MetricUnavailable, match="censored: the retrained model did not relearn within 10 mini-batches"):
        ain(make_probe(hidden()), CONTEXT)
    monkeypatch.setattr("raybench.metrics.relearn_time.MAX_EPOCHS", 1)
    with pytest.raises(MetricUnavailable, match="censored: not relearned after 1 epochs of 500 samples"):
        relearn_time(make_probe(make_retrained()), CONTEXT)


def relearn_time_or_cap(model: nn.Module) -> float:
    try:
        return relearn_time(make_probe(model), CONTEXT)
    except MetricUnavailable as reason:
        if "censored" not in str(reason):
            raise
        return math.inf


@pytest.mark.parametrize("bias", [-10.0, -20.0])
def test_labels_hidden_in_the_head_are_exposed(bias: float) -> None:
    model = hidden(bias)
    assert mechanism.accuracy_on(model, make_bench().splits["forget"]) < 0.9  # it looks forgotten
    ours, gold = relearn_time_or_cap(model), relearn_time_or_cap(make_retrained())
    assert relearn_time_or_cap(original()) == 1.0
    assert ours <= 10.0
    assert gold >= 3 * ours


def test_attack_brings_back_what_is_hidden() -> None:
    attacks = (relearn_attack_1, relearn_attack_5, relearn_attack_20)
    ours, gold = ([fn(make_probe(m), CONTEXT) for fn in attacks] for m in (hidden(), make_retrained()))
    assert relearn_attack(make_probe(hidden()), CONTEXT) == pytest.approx(sum(ours) / 3, abs=1e-12)
    assert ours[0] > 0.5 > gold[0]
    assert min(ours[1:]) > 0.9
    assert relearn_attack(make_probe(), CONTEXT) > 0.95  # the original never forgot


def test_a_learning_rate_that_diverges_is_a_failed_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_file, "LEARNING_RATES", (0.01, 1e12))
    with_both = relearn_attack_20(make_probe(hidden(**TINY), **TINY), CONTEXT)
    monkeypatch.setattr(attack_file, "LEARNING_RATES", (0.01,))
    assert relearn_attack_20(make_probe(hidden(**TINY), **TINY), CONTEXT) == with_both


def test_attack_takes_the_worst_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = relearn_attack_5(make_probe(hidden()), CONTEXT)
    single = []
    for lr in attack_file.LEARNING_RATES:
        monkeypatch.setattr(attack_file, "LEARNING_RATES", (lr,))
        single.append(relearn_attack_5(make_probe(hidden()), CONTEXT))
    assert whole == max(single)
    assert min(single) < whole


# --- ZRF -------------------------------------------------------------------------------------------------------------


def test_zrf_of_known_probabilities() -> None:
    p = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64).log()
    q = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    assert paper_score(p, q) == pytest.approx(0.815126, abs=5e-7)
    assert code_score(p, q) == pytest.approx(0.925135, abs=5e-7)
    assert paper_score(p, p) == pytest.approx(1.0, abs=1e-12)
    assert code_score(p, p) == pytest.approx(1.0, abs=1e-12)


def test_zrf_code_is_what_kl_div_gives_with_mean_reduction() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, 5, generator=draw, dtype=torch.float64).log_softmax(1) for _ in range(2))
    m = (p.exp() + q.exp()) / 2
    wanted = 0.5 * ((m * (m.log() - p)).mean() + (m * (m.log() - q)).mean())
    assert code_score(p, q) == pytest.approx(1 - float(wanted), abs=1e-12)


def test_zrf_is_the_mean_over_five_networks() -> None:
    probe, built = make_probe(), []
    counted = dataclasses.replace(probe, construct=lambda: built.append(1) or make_bench().build())
    x, _ = probe.splits["forget"].tensors()
    with torch.no_grad():
        ours = probe.model(x).double().log_softmax(1)
        scores = [paper_score(ours, probe.build("zrf", k)(x).double().log_softmax(1)) for k in range(5)]
    assert zrf(counted, CONTEXT) == pytest.approx(sum(scores) / 5, abs=1e-6)
    assert len(built) == 5
    assert len(set(scores)) == 5


def test_zrf_of_an_untrained_network_is_above_the_originals() -> None:
    untrained = make_probe().build("other")
    ours, first = (make_probe(untrained), make_probe())
    assert zrf(ours, CONTEXT) > 0.95 > zrf(first, CONTEXT)
    assert zrf_code(ours, CONTEXT) > zrf_code(first, CONTEXT) > zrf(first, CONTEXT)  # squeezed towards 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_broken_outputs_have_a_reason(poison: float) -> None:
    with pytest.raises(MetricUnavailable, match="NaN or infinite"):
        zrf(make_probe(hidden(poison)), CONTEXT)


# --- distance of weights ---------------------------------------------------------------------------------------------


def test_layer_distance_of_known_weights() -> None:
    gold = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for p, values in zip(gold.parameters(), ([[3.0, 0.0]], [4.0], [[1.0], [0.0]], [0.0, 0.0]), strict=True):
            p.copy_(torch.tensor(values))
    ours = copy.deepcopy(gold)
    with torch.no_grad():
        ours[0].bias += 2.0  # |d| / |w| = 2 / 5
        ours[2].weight[1] = -1.0  # 1 / 1
    probe = dataclasses.replace(make_probe(), model=ours, retrained=gold)
    assert layer_distance(probe, CONTEXT) == pytest.approx((0.4 + 1.0) / 2, abs=1e-12)


def test_layer_distance_of_equal_other_and_empty_models() -> None:
    assert layer_distance(make_probe(make_retrained()), CONTEXT) == 0.0
    other = make_bench("mlp").original.model
    with pytest.raises(MetricUnavailable, match="other layers"):
        layer_distance(make_probe(other), CONTEXT)
    probe = make_probe()
    with torch.no_grad():
        for p in probe.retrained.head.parameters():
            p.zero_()
    with pytest.raises(MetricUnavailable, match="all zero"):
        layer_distance(probe, CONTEXT)

"""What every registered metric must do, built in or not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from raybench import evaluation
from raybench.data import Pixels, Split
from raybench.errors import MetricUnavailable
from raybench.metrics import DEFAULT_METRICS
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import HIGHER, LOWER, MATCH_RETRAINED, METRICS, WHOLE_WORLDS, MetricEntry

# Those that probe models have test_probes.py, those on whole worlds of models test_worlds.py.
ENTRIES = [entry for entry in METRICS if not entry.probe and entry.pool not in WHOLE_WORLDS]
every_metric = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
both_scenarios = pytest.mark.parametrize("forget_class", [False, True], ids=["sample", "class"])
CLASS_ONLY = {"e_f", "a_r", "validation_accuracy_forgotten", "test_accuracy_forgotten"}


def compute(entry: MetricEntry, outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    return entry.fn(outputs, retrained, context) if entry.pair else entry.fn(outputs, context)


def value_or_skip(entry: MetricEntry, outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """The value. A metric outside the default set, or one of whole classes, may be unavailable with a reason."""
    try:
        return compute(entry, outputs, retrained, context)
    except MetricUnavailable as reason:
        if not str(reason) or (
            entry.name in DEFAULT_METRICS and (context.forget_classes or entry.name not in CLASS_ONLY)
        ):
            raise
        pytest.skip(f"{entry.name}: {reason}")


def shuffled(outputs: Outputs, seed: int) -> Outputs:
    splits = {}
    for name, split in outputs.items():
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        splits[name] = SplitOutputs(split.logits[order], split.labels[order])
    return Outputs(splits)


@every_metric
@both_scenarios
def test_a_float_in_range_or_a_reason(entry, forget_class, random_outputs, context) -> None:
    value = value_or_skip(entry, *(random_outputs(s, forget_class) for s in (1, 2)), context(forget_class))
    low, high = entry.range
    assert type(value) is float
    assert math.isfinite(value)
    assert low is None or value >= low
    assert high is None or value <= high


@pytest.mark.parametrize("name", sorted(CLASS_ONLY))
def test_class_metrics_are_missing_in_sample_scenarios(name, random_outputs, context) -> None:
    with pytest.raises(MetricUnavailable):
        compute(METRICS[name], random_outputs(1), random_outputs(2), context())


@every_metric
@both_scenarios
def test_sample_order_does_not_matter(entry, forget_class, random_outputs, context) -> None:
    ours, theirs = (random_outputs(s, forget_class) for s in (1, 2))
    value = value_or_skip(entry, ours, theirs, context(forget_class))
    for seed in (5, 6, 7):
        pool = [shuffled(oracle, seed) for oracle in context(forget_class).oracles()]
        where = context(forget_class, oracles=lambda pool=pool: pool)
        other = compute(entry, shuffled(ours, seed), shuffled(theirs, seed), where)
        assert other == pytest.approx(value, abs=1e-12)


@every_metric
def test_the_batch_size_of_evaluation_does_not_matter(entry, random_outputs, context, monkeypatch) -> None:
    # metrics.md section 13, number 9. The "network" reads its logits off the image, so they are equal to the bit.
    one = torch.ones(1, 1, 1, 1)

    def evaluated(seed: int, batch: int) -> Outputs:
        monkeypatch.setattr(evaluation, "BATCH_SIZE", batch)
        splits = {
            name: Split(
                (16 * s.logits[:, :, None, None] + 128).clamp(0, 255).to(torch.uint8),
                s.labels,
                torch.arange(len(s)),
                Pixels(0.5 * one, 0.1 * one),
            )
            for name, s in random_outputs(seed, True).items()
        }
        return evaluation.outputs_of(lambda images: images.flatten(1), splits, evaluation.FINAL_SPLITS)

    values = [value_or_skip(entry, evaluated(1, n), evaluated(2, n), context(True)) for n in (1000, 64, 1)]
    assert len(set(values)) == 1


@every_metric
def test_equal_models_give_equal_values(entry, random_outputs, context) -> None:
    ours, copy = random_outputs(3, True), random_outputs(3, True)
    value = value_or_skip(entry, ours, copy, context(True))
    if entry.pair:
        assert value == {HIGHER: 1.0, LOWER: 0.0, MATCH_RETRAINED: 1.0}[entry.direction]
    else:
        assert value == compute(entry, copy, ours, context(True))


@every_metric
@both_scenarios
def test_search_metrics_never_touch_the_test_set(entry, forget_class, random_outputs, context) -> None:
    def without_test(seed: int) -> Outputs:
        return Outputs({k: v for k, v in random_outputs(seed, forget_class).items() if not k.startswith("test")})

    search = context(forget_class, held_out="validation", oracles=tuple)  # as the harness gives it
    if entry.final_only:
        with pytest.raises(MetricUnavailable):
            compute(entry, without_test(1), without_test(2), search)
    else:
        assert math.isfinite(value_or_skip(entry, without_test(1), without_test(2), search))


@every_metric
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_broken_logits_have_a_reason(entry, poison, random_outputs, context) -> None:
    outputs = random_outputs(1, True)
    for split in outputs.values():
        split.logits[3, 2] = poison
    with pytest.raises(MetricUnavailable, match="NaN or infinite"):
        compute(entry, outputs, random_outputs(2, True), context(True))
    if entry.pair:
        with pytest.raises(MetricUnavailable, match="NaN or infinite"):
            compute(entry, random_outputs(2, True), outputs, context(True))


@every_metric
def test_absent_and_empty_splits_have_a_reason(entry, context) -> None:
    empty = SplitOutputs(torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    names = ["retain", "forget", "validation", "test", "validation_forgotten", "test_forgotten"]
    for outputs in (Outputs({}), Outputs(dict.fromkeys(names, empty))):
        with pytest.raises(MetricUnavailable):
            compute(entry, outputs, outputs, context(True))


@pytest.mark.parametrize("entry", list(METRICS), ids=lambda entry: entry.name)
def test_metadata(entry) -> None:
    assert entry.direction in {HIGHER, LOWER, MATCH_RETRAINED}
    assert entry.fn.__name__.rstrip("_") == entry.name
    assert entry.label
    assert entry.summary
    assert entry.unit
    # A pair metric is a distance or a likeness already; a ratio to the retrained model is neither.
    assert not entry.pair or entry.direction in {HIGHER, LOWER} or entry.unit == "ratio"
    assert entry.attack is not None or entry.probe or "attack" not in entry.name
    assert entry.attack is None or all(dataclasses.astuple(entry.attack))


def test_default_metrics_are_registered_once() -> None:
    assert len(set(DEFAULT_METRICS)) == len(DEFAULT_METRICS)
    assert set(DEFAULT_METRICS) <= {entry.name for entry in ENTRIES}

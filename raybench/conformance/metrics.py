"""What every metric keeps to: a number in its range or a reason, whatever the outputs are.

Metrics of outputs are checked on made-up logits, those that probe models on a small trained one; metrics of whole
worlds of models only by what they declare.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from raybench.conformance.rules import Broken, Case, NotHere, function_and_key_are_one_word, hold
from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import CLASSIFICATION, HIGHER, LOWER, MATCH_RETRAINED, METRICS, WHOLE_WORLDS, MetricEntry
from raybench.testing import make_probe

SIZES = {"retain": 400, "forget": 150, "validation": 160, "test": 300}
TRIGGERED = {"test_triggered": 130}
FORGOTTEN = {"validation_forgotten": 120, "test_forgotten": 140}
CLASSES = 5
BEST = {HIGHER: 1.0, LOWER: 0.0, MATCH_RETRAINED: 1.0}  # of a pair metric on two equal models
PROBED = {"model": "mlp", "samples": 300}


def cases(name: str) -> Iterator[Case]:
    """The checks of one metric, in a scenario of whole classes and in one of samples."""
    entry = METRICS[name]
    yield Case(function_and_key_are_one_word, (entry,))
    yield Case(declares_what_it_is, (name,))
    if entry.probe:
        yield Case(probe_gives_a_number_in_range_the_same_each_time, (name,))
    elif entry.pool not in WHOLE_WORLDS:
        for kind in ("sample", "class"):
            yield Case(number_in_range_or_a_reason, (name, kind))
            yield Case(order_of_samples_does_not_matter, (name, kind))
            yield Case(search_never_touches_the_test_set, (name, kind))
        yield Case(equal_models_give_equal_values, (name,))
        yield from (Case(broken_logits_have_a_reason, (name, poison)) for poison in (math.nan, math.inf))
        yield Case(absent_and_empty_splits_have_a_reason, (name,))


def toy_outputs(seed: int, forget_class: bool = False) -> Outputs:
    """Outputs of an untrained-looking model of 5 classes; the labels do not depend on ``seed``."""
    draw, splits = torch.Generator().manual_seed(seed), {}
    for place, (name, size) in enumerate({**SIZES, **(FORGOTTEN if forget_class else {}), **TRIGGERED}.items()):
        labels = torch.randint(CLASSES - 1, (size,), generator=torch.Generator().manual_seed(place))
        if forget_class and ("forget" in name):
            labels = torch.full((size,), CLASSES - 1)
        logits = 2 * torch.randn(size, CLASSES, generator=draw)
        logits[torch.arange(size), labels] += 1.0 + (name == "retain")
        splits[name] = SplitOutputs(logits, labels)
    return Outputs(splits)


def toy_context(forget_class: bool = False, **changes: Any) -> MetricContext:
    """The context that belongs to ``toy_outputs``, with three oracles."""
    oracles = [toy_outputs(seed, forget_class) for seed in (101, 102, 103)]
    extras = {f"original_{split}_accuracy": 0.5 for split in ("retain", "validation", "test")}
    extras["clean_test_accuracy"] = 0.9
    given: dict[str, Any] = {"extras": extras, "oracles": lambda: oracles, **changes}
    return MetricContext(num_classes=CLASSES, forget_classes=(CLASSES - 1,) if forget_class else (), **given)


def compute(entry: MetricEntry, outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """The metric of ``outputs``, beside those of the retrained model where it compares with them."""
    value: float = entry.fn(outputs, retrained, context) if entry.pair else entry.fn(outputs, context)
    return value


def value_of(entry: MetricEntry, outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """The value; ``NotHere`` where the metric is unavailable with a reason."""
    try:
        return compute(entry, outputs, retrained, context)
    except MetricUnavailable as reason:
        hold(bool(str(reason)), "MetricUnavailable must say why")
        raise NotHere(str(reason)) from reason


def shuffled(outputs: Outputs, seed: int) -> Outputs:
    """The same samples in another order."""
    splits = {}
    for name, split in outputs.items():
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        splits[name] = SplitOutputs(split.logits[order], split.labels[order])
    return Outputs(splits)


def declares_what_it_is(name: str) -> None:
    """Direction, unit and the words of an attack are there and fit together."""
    entry = METRICS[name]
    hold(entry.direction in BEST, f"direction= must be one of {', '.join(BEST)}, got {entry.direction!r}")
    hold(bool(entry.unit), "unit= must say what the number counts")
    ratio = entry.direction in {HIGHER, LOWER} or entry.unit == "ratio"
    hold(not entry.pair or ratio, "a pair metric is a distance (lower), a likeness (higher) or a ratio")
    facts = entry.attack is None or all(dataclasses.astuple(entry.attack))
    hold(facts, "attack= must fill every word of raybench.registry.Attack")


def _in_range(entry: MetricEntry, value: Any) -> None:
    low, high = entry.range
    hold(type(value) is float, f"must return a float, got {type(value).__name__}")
    inside = (low is None or value >= low) and (high is None or value <= high)
    hold(math.isfinite(value) and inside, f"must be finite and in {entry.range}, got {value}")


def probe_gives_a_number_in_range_the_same_each_time(name: str) -> None:
    """On the original of a small trained problem."""
    entry, context = METRICS[name], MetricContext(10, forget_classes=(0,))
    if CLASSIFICATION not in entry.tasks:
        raise NotHere(f"measures models of {' and '.join(sorted(entry.tasks))}, and the trained problem is another")
    state = torch.get_rng_state()
    try:
        first, again = (entry.fn(make_probe(**PROBED), context) for _ in range(2))
    except MetricUnavailable as reason:
        raise NotHere(str(reason)) from reason
    _in_range(entry, first)
    hold(first == again, f"two measurements of one model differ: {first} and {again}; draw from probe.generator")
    hold(torch.equal(torch.get_rng_state(), state), "moves torch's global random state")


def number_in_range_or_a_reason(name: str, kind: str) -> None:
    """A float in the declared range, or ``MetricUnavailable`` with a text."""
    entry, of_class = METRICS[name], kind == "class"
    _in_range(entry, value_of(entry, toy_outputs(1, of_class), toy_outputs(2, of_class), toy_context(of_class)))


def order_of_samples_does_not_matter(name: str, kind: str) -> None:
    """Equal within 1e-12 for three other orders."""
    entry, of_class = METRICS[name], kind == "class"
    ours, theirs = (toy_outputs(seed, of_class) for seed in (1, 2))
    value = value_of(entry, ours, theirs, toy_context(of_class))
    for seed in (5, 6, 7):
        pool = [shuffled(oracle, seed) for oracle in toy_context(of_class).oracles()]
        where = toy_context(of_class, oracles=lambda pool=pool: pool)
        other = compute(entry, shuffled(ours, seed), shuffled(theirs, seed), where)
        hold(abs(other - value) <= 1e-12, f"another order of the samples gives {other}, not {value}")


def search_never_touches_the_test_set(name: str, kind: str) -> None:
    """Without test outputs there is a value, unless the metric is declared ``final_only``."""
    entry, of_class = METRICS[name], kind == "class"

    def without_test(seed: int) -> Outputs:
        return Outputs({k: v for k, v in toy_outputs(seed, of_class).items() if not k.startswith("test")})

    search = toy_context(of_class, held_out="validation", oracles=tuple)  # as the harness gives it
    if not entry.final_only:
        value = value_of(entry, without_test(1), without_test(2), search)
        hold(math.isfinite(value), f"must be finite, got {value}")
        return
    try:
        compute(entry, without_test(1), without_test(2), search)
    except MetricUnavailable:
        return
    raise Broken("declared final_only, but it does not look at the test set")


def equal_models_give_equal_values(name: str) -> None:
    """The best value of a pair metric, and the same number twice of the others."""
    entry = METRICS[name]
    ours, copy = toy_outputs(3, True), toy_outputs(3, True)
    value = value_of(entry, ours, copy, toy_context(True))
    expected = BEST[entry.direction] if entry.pair else compute(entry, copy, ours, toy_context(True))
    hold(value == expected, f"two equal models must give {expected}, got {value}")


def broken_logits_have_a_reason(name: str, poison: float) -> None:
    """Not a number that looks like one."""
    entry = METRICS[name]
    bad = toy_outputs(1, True)
    for split in bad.values():
        split.logits[3, 2] = poison
    good = toy_outputs(2, True)
    for ours, theirs in ((bad, good), (good, bad)) if entry.pair else ((bad, good),):
        try:
            value = compute(entry, ours, theirs, toy_context(True))
        except MetricUnavailable as reason:
            hold("NaN or infinite" in str(reason), f"the reason must say 'NaN or infinite', is {str(reason)!r}")
        else:
            raise Broken(f"logits with {poison} give {value}; outputs.usable(split) raises MetricUnavailable by itself")


def absent_and_empty_splits_have_a_reason(name: str) -> None:
    """Rows of a search, or of a scenario without forgotten classes, lack some splits."""
    entry = METRICS[name]
    empty = SplitOutputs(torch.empty(0, CLASSES), torch.empty(0, dtype=torch.int64))
    for outputs in (Outputs({}), Outputs(dict.fromkeys([*SIZES, *FORGOTTEN], empty))):
        try:
            value = compute(entry, outputs, outputs, toy_context(True))
        except MetricUnavailable:
            continue
        raise Broken(f"outputs without samples give {value}; outputs[name] raises MetricUnavailable by itself")

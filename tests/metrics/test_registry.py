"""What every registered metric must do, built in or not (``raybench.conformance.metrics``)."""

from __future__ import annotations

import pytest
import torch

from raybench import evaluation
from raybench.conformance import NotHere, cases
from raybench.conformance.metrics import value_of
from raybench.data import Pixels, Split
from raybench.errors import MetricUnavailable
from raybench.metrics import DEFAULT_METRICS
from raybench.outputs import Outputs
from raybench.registry import METRICS, WHOLE_WORLDS, MetricEntry

# Those that probe models have test_probes.py, those on whole worlds of models test_worlds.py.
ENTRIES = [entry for entry in METRICS if not entry.probe and entry.pool not in WHOLE_WORLDS]
every_metric = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
CLASS_ONLY = {"e_f", "a_r", "validation_accuracy_forgotten", "test_accuracy_forgotten"}
CASES = [(name, case) for name in METRICS.names() for case in cases("metrics", name)]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.rule}" for name, case in CASES])
def test_conformance(name, case) -> None:
    try:
        case.run()
    except NotHere as reason:
        pytest.skip(str(reason))


@every_metric
@pytest.mark.parametrize("forget_class", [False, True], ids=["sample", "class"])
def test_default_metrics_are_always_there(entry, forget_class, random_outputs, context) -> None:
    if entry.name in DEFAULT_METRICS and (forget_class or entry.name not in CLASS_ONLY):
        value_of(entry, *(random_outputs(seed, forget_class) for seed in (1, 2)), context(forget_class))


@pytest.mark.parametrize("name", sorted(CLASS_ONLY))
def test_class_metrics_are_missing_in_sample_scenarios(name, random_outputs, context) -> None:
    entry: MetricEntry = METRICS[name]
    with pytest.raises(MetricUnavailable):
        entry.fn(*((random_outputs(1), random_outputs(2)) if entry.pair else (random_outputs(1),)), context())


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

    try:
        values = [value_of(entry, evaluated(1, n), evaluated(2, n), context(True)) for n in (1000, 64, 1)]
    except NotHere as reason:
        pytest.skip(str(reason))
    assert len(set(values)) == 1


@pytest.mark.parametrize("entry", list(METRICS), ids=lambda entry: entry.name)
def test_metadata(entry) -> None:
    assert entry.label
    assert entry.attack is not None or entry.probe or "attack" not in entry.name


def test_default_metrics_are_registered_once() -> None:
    assert len(set(DEFAULT_METRICS)) == len(DEFAULT_METRICS)
    assert set(DEFAULT_METRICS) <= {entry.name for entry in ENTRIES}

"""Bad input to all registered metrics at once: what cannot be computed is missing with its reason, the rest stands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.evaluation import extras_of, measure
from raybench.metrics import DEFAULT_METRICS
from raybench.outputs import Outputs, SplitOutputs
from raybench.problem import load_data
from raybench.registry import METHODS, METRICS, WHOLE_WORLDS
from raybench.spec import FINAL, Choice, ProblemSpec, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

NAMES = [entry.name for entry in METRICS if not entry.probe and entry.pool not in WHOLE_WORLDS]
ATTACKS = [name for name in NAMES if METRICS[name].attack is not None]
RETAIN_ONLY = {"retain_accuracy", "retain_loss", "retain_retention"}
Change = Callable[[str, SplitOutputs], SplitOutputs]


def first(count: int, *names: str) -> Change:
    """Only ``count`` samples of the named splits (default: of all)."""

    def change(name: str, split: SplitOutputs) -> SplitOutputs:
        few = slice(count if not names or name in names else None)
        return SplitOutputs(split.logits[few], split.labels[few])

    return change


def one_class(name: str, split: SplitOutputs) -> SplitOutputs:
    """Every sample has label 0."""
    return SplitOutputs(split.logits, torch.zeros_like(split.labels))


def single_logit(name: str, split: SplitOutputs) -> SplitOutputs:
    """A dataset of one class: the softmax is 1 whatever the logit."""
    return SplitOutputs(split.logits[:, :1], torch.zeros_like(split.labels))


def constant(name: str, split: SplitOutputs) -> SplitOutputs:
    """A model that answers all images alike."""
    return SplitOutputs(torch.zeros_like(split.logits), split.labels)


def poisoned(value: float) -> Change:
    """One broken logit in the forget set."""

    def change(name: str, split: SplitOutputs) -> SplitOutputs:
        logits = split.logits.clone()
        if name == "forget":
            logits[1, 2] = value
        return SplitOutputs(logits, split.labels)

    return change


def measured(
    random_outputs: Any, context: Any, change: Change, forget_class: bool, **facts: Any
) -> tuple[dict[str, float | None], dict[str, str]]:
    ours, gold, *pool = (
        Outputs({name: change(name, split) for name, split in random_outputs(seed, forget_class).items()})
        for seed in (1, 2, 101, 102)
    )
    facts = {"oracles": lambda: pool} | facts
    extras = extras_of(random_outputs(3, forget_class), (), final=True)
    columns, missing = measure(NAMES, ours, gold, context(forget_class, extras=extras, **facts), pooled=True)
    for name in NAMES:
        value = columns[name]
        assert (value is None) == (name in missing and "of the retrained model" not in missing[name]), name
        assert value is None or math.isfinite(value), name
        assert name not in missing or len(missing[name]) > 10, name
    return columns, missing


both_scenarios = pytest.mark.parametrize("forget_class", [False, True], ids=["sample", "class"])


@both_scenarios
def test_fewer_samples_than_an_attack_needs(random_outputs: Any, context: Any, forget_class: bool) -> None:
    for change in (first(1), first(1, "forget")):
        columns, missing = measured(random_outputs, context, change, forget_class)
        few = {"loss_attack_auc", "loss_attack_accuracy", "loss_attack_tpr", "rmia_auc", "distance", "retrained_free"}
        assert few <= set(missing)
        assert "at least" in missing["loss_attack_auc"]
        for name in ("retain_accuracy", "forget_accuracy", "test_accuracy", "tow", "js_divergence", "forget_loss"):
            assert columns[name] is not None


@both_scenarios
def test_no_samples(random_outputs: Any, context: Any, forget_class: bool) -> None:
    columns, missing = measured(random_outputs, context, first(0, "forget"), forget_class)
    assert missing["forget_accuracy"] == "the forget split is empty"
    assert all(columns[name] is not None for name in RETAIN_ONLY)
    assert all(value is None for value in measured(random_outputs, context, first(0), forget_class)[0].values())


@both_scenarios
def test_one_class_only(random_outputs: Any, context: Any, forget_class: bool) -> None:
    """All labels alike is no reason for any metric; a softmax over one class is one for every attack on it."""
    columns, missing = measured(random_outputs, context, one_class, forget_class)
    usual = measured(random_outputs, context, first(10**6), forget_class)[1]
    assert set(missing) == set(usual)
    columns, missing = measured(random_outputs, context, single_logit, forget_class, oracles=tuple)
    assert set(ATTACKS) <= set(missing)
    assert "constant" in missing["loss_attack_auc"]
    assert columns["retain_accuracy"] == columns["forget_accuracy"] == 1.0


@both_scenarios
def test_constant_scores(random_outputs: Any, context: Any, forget_class: bool) -> None:
    columns, missing = measured(random_outputs, context, constant, forget_class)
    for name in ("loss_attack_auc", "loss_attack_accuracy", "loss_attack_tpr", "confidence_attack", "entropy_attack"):
        assert "constant" in missing[name]
    assert "constant" in missing["distance"]  # an average over fewer terms would be another metric
    assert columns["forget_loss"] == pytest.approx(math.log(5))
    assert columns["js_divergence"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@both_scenarios
def test_broken_outputs(random_outputs: Any, context: Any, forget_class: bool, value: float) -> None:
    columns, missing = measured(random_outputs, context, poisoned(value), forget_class)
    assert "NaN or infinite" in missing["forget_accuracy"]
    assert {"loss_attack_auc", "distance", "tow", "js_divergence"} <= set(missing)
    whole, _ = measured(random_outputs, context, first(10**6), forget_class)
    for name in (*RETAIN_ONLY, "test_accuracy", "validation_accuracy", "training_privacy"):
        assert columns[name] == whole[name] is not None


def test_no_oracles(random_outputs: Any, context: Any) -> None:
    needing = {name for name in NAMES if METRICS[name].pool}
    columns, missing = measured(random_outputs, context, first(10**6), False, oracles=tuple)
    assert {"rmia_auc", "rmia_tpr", "lira_auc"} <= needing <= set(missing)
    assert "set oracles in the spec" in missing["rmia_auc"]
    assert all(columns[name] is not None for name in DEFAULT_METRICS if not name.endswith("_forgotten"))


def test_a_row_of_one_forgotten_sample_with_every_metric_that_there_is(tmp_path: Path) -> None:
    """Probes of the models and metrics of whole worlds too, without oracles: the row is ok and says what is missing."""
    digits, every = Choice("digits", {"train_size": 200, "test_size": 60}), tuple(entry.name for entry in METRICS)
    checksum, recipe = load_data(digits, None, False)[1], {"epochs": 3, "batch_size": 32}
    one, model = Choice("random", {"count": 1}), Choice("mlp", {"hidden": [8]})
    spec = TrialSpec(
        ProblemSpec(digits, checksum, model, one, recipe, 0), "finetune", METHODS["finetune"].version, {}, 0, FINAL
    )
    row = run_trial(spec, {}, Workshop(Settings("test", str(tmp_path), every)))
    assert row["status"] == "ok", row["reason"]
    missing = json.loads(row["missing"])
    for name in every:
        assert (row[name] is not None) or missing[name], name
    assert {"loss_attack_auc", "rmia_auc", "ulira_auc", "klom", "challenge_score"} <= set(missing)
    assert row["forget_accuracy"] in (0.0, 1.0)
    assert row["retain_accuracy"] > 0.1

"""The suites of datasets, models, scenarios and metrics find faults: plug-ins that break one rule each. (Those of
methods have tests/methods/test_conformance_faults.py.)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybench.conformance import check
from raybench.contract import Classifier
from raybench.data import RawData, Request
from raybench.registry import (
    CLASS,
    DATASETS,
    HIGHER,
    METRICS,
    MODELS,
    SCENARIOS,
    DatasetEntry,
    MetricEntry,
    ModelEntry,
    ScenarioEntry,
)


def broken(kind: str, name: str) -> dict[str, str]:
    """Rule -> reason of the broken ones."""
    return {finding.rule: finding.reason for finding in check(kind, name) if finding.status == "broken"}


def raw(**changes: Any) -> RawData:
    labels = np.arange(30, dtype=np.int64) % 3
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    return dataclasses.replace(RawData("faulty", images, labels, images[:9], labels[:9], 3, (0.5,), (0.3,)), **changes)


DATASET_FAULTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "floats": (lambda: raw(x_train=raw().x_train / 255), "images are bytes", "x_train must be uint8"),
    "upside down": (
        lambda: raw(x_train=raw().x_train[:, :, ::-1]),
        "images are bytes",
        "x_train must be contiguous",
    ),
    "other size": (lambda: raw(x_test=raw().x_test[:, :, 2:].copy()), "images are bytes", "must have the shape"),
    "labels from one": (lambda: raw(y_train=raw().y_train + 1), "labels count from zero", "must be 0..2"),
    "small integers": (lambda: raw(y_test=raw().y_test.astype(np.int32)), "labels count from zero", "must be int64"),
    "empty class": (lambda: raw(num_classes=4), "labels count from zero", "no training image of class 3"),
    "bytes as mean": (lambda: raw(mean=(120.0,)), "statistics fit the channels", "in units of [0, 1]"),
    "too many means": (lambda: raw(mean=(0.5, 0.5)), "statistics fit the channels", "must have 1 numbers"),
    "unknown augmentation": (lambda: raw(augment="spin"), "statistics fit the channels", "augment must be one of"),
    "drawn anew": (
        lambda: raw(x_train=np.random.default_rng().integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)),
        "loading again gives the same",
        "two loads differ",
    ),
    "global draw": (
        lambda: raw(y_test=np.sort(np.random.permutation(raw().y_test))),
        "loading again gives the same",
        "global random state",
    ),
    "no record": (lambda: (1, 2), "images are bytes", "must return raybench.data.RawData, got tuple"),
}


@pytest.mark.parametrize("fault", DATASET_FAULTS)
def test_faults_of_datasets(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, rule, reason = DATASET_FAULTS[fault]

    def faulty(root, download=False):
        """Breaks one rule."""
        return make()

    monkeypatch.setitem(DATASETS._entries, "faulty", DatasetEntry("faulty", faulty))
    assert reason in broken("datasets", "faulty")[rule]


def test_a_sound_dataset_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def sound(root, download=False):
        """Keeps to all rules."""
        return raw()

    monkeypatch.setitem(DATASETS._entries, "sound", DatasetEntry("sound", sound))
    assert {finding.status for finding in check("datasets", "sound")} == {"ok"}


def network(classes: int, shape: Any, **parts: Any) -> Classifier:
    stage = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.ReLU())
    model = Classifier([stage], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, classes))
    for name, part in parts.items():
        setattr(model, name, part)
    return model


class Spied(Classifier):
    """Every image sees the mean of its batch."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) + x.mean()


def spied(classes: int, shape: Any) -> Classifier:
    model = network(classes, shape)
    return Spied(model.stages(), model.neck, model.head)


def frozen_seed(classes: int, shape: Any) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(classes, shape)


MODEL_FAULTS: dict[str, tuple[Callable[..., nn.Module], str, str]] = {
    "no stages": (lambda k, s: nn.Linear(3, k), "keeps the contract ((1, 28, 28))", "has no stages"),
    "unused weight": (
        lambda k, s: network(k, s, spare=nn.Linear(2, 2)),
        "every parameter learns ((1, 28, 28))",
        "spare.weight",
    ),
    "batch seen": (spied, "samples do not see each other ((1, 28, 28))", "other images of its batch"),
    "own seed": (frozen_seed, "seed decides the weights and nothing else does", "the seed does not matter"),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_faults_of_models(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, rule, reason = MODEL_FAULTS[fault]

    def faulty(num_classes, input_shape):
        """Breaks one rule."""
        return build(num_classes, input_shape)

    monkeypatch.setitem(MODELS._entries, "faulty", ModelEntry("faulty", faulty))
    assert reason in broken("models", "faulty")[rule]


def half(labels: np.ndarray) -> np.ndarray:
    return np.arange(len(labels)) % 2 == 0


SCENARIO_FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "positions": (lambda x, y, rng: Request(np.flatnonzero(half(y))), "must be a bool mask"),
    "global draw": (lambda x, y, rng: Request(np.random.rand(len(y)) < 0.5), "use rng and nothing else"),
    "classes of samples": (lambda x, y, rng: Request(half(y), forget_classes=(1,)), "kind is sample"),
    "labels outside": (lambda x, y, rng: Request(half(y), labels=(y + 1) % 3), "changes labels outside"),
    "writes": (lambda x, y, rng: Request(np.logical_not(y, out=y) > 0), "raises"),
}


@pytest.mark.parametrize("fault", SCENARIO_FAULTS)
def test_faults_of_scenarios(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, reason = SCENARIO_FAULTS[fault]

    def faulty(images, labels, num_classes, params, rng):
        """Breaks one rule."""
        return draw(images, labels, rng)

    monkeypatch.setitem(SCENARIOS._entries, "faulty", ScenarioEntry("faulty", faulty))
    assert reason in broken("scenarios", "faulty")["request is sound"]


def test_a_request_of_classes_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(images, labels, num_classes, params, rng):
        """Says that whole classes go, and not which."""
        return Request(labels == 0)

    monkeypatch.setitem(SCENARIOS._entries, "faulty", ScenarioEntry("faulty", faulty, kind=CLASS))
    assert "forget_classes is ()" in broken("scenarios", "faulty")["request is sound"]


def mean_loss(outputs: Any) -> float:
    return float(outputs.usable("forget").losses.mean())


METRIC_FAULTS: dict[str, tuple[Callable[..., Any], dict[str, Any], str, str]] = {
    "a tensor": (lambda o: o.usable("forget").losses.mean(), {}, "number in range or a reason (class)", "a float"),
    "out of range": (lambda o: mean_loss(o) + 9, {}, "number in range or a reason (sample)", "in (0.0, 1.0)"),
    "order": (
        lambda o: float(o.usable("forget").confidences[0]),
        {},
        "order of samples does not matter (sample)",
        "another order",
    ),
    "final for nothing": (
        lambda o: float(o.usable("forget").confidences.mean()),
        {"final_only": True},
        "search never touches the test set (class)",
        "does not look at the test set",
    ),
    "no reason": (
        lambda o: float(o["forget"].confidences.mean()),
        {},
        "broken logits have a reason (nan)",
        "logits with nan give nan",
    ),
    "never absent": (
        lambda o: 0.5 if not o.has("forget") else float(o.usable("forget").confidences.mean()),
        {},
        "absent and empty splits have a reason",
        "outputs without samples give 0.5",
    ),
    "direction": (lambda o: 0.5, {"direction": "sideways"}, "declares what it is", "direction= must be one of"),
}


@pytest.mark.parametrize("fault", METRIC_FAULTS)
def test_faults_of_metrics(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, metadata, rule, reason = METRIC_FAULTS[fault]

    def faulty(outputs, context):
        """Breaks one rule."""
        return compute(outputs)

    monkeypatch.setitem(METRICS._entries, "faulty", MetricEntry("faulty", faulty, **metadata))
    assert reason in broken("metrics", "faulty")[rule]


def test_a_likeness_of_equal_models_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(outputs, retrained, context):
        """Equal models, and not 1."""
        ours, theirs = outputs.usable("forget").losses, retrained.usable("forget").losses
        return math.exp(-1.0 - float((ours - theirs).abs().mean()))

    monkeypatch.setitem(METRICS._entries, "faulty", MetricEntry("faulty", faulty, direction=HIGHER, pair=True))
    assert "two equal models must give 1.0" in broken("metrics", "faulty")["equal models give equal values"]


def test_names_and_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(outputs, context):
        return 0.5

    monkeypatch.setitem(METRICS._entries, "faulty", MetricEntry("faulty", other))
    assert "'faulty', got 'other'" in broken("metrics", "faulty")["function and key are one word"]
    other.__name__ = "faulty"
    assert "no docstring" in broken("metrics", "faulty")["function and key are one word"]

"""One pass over each split: logits against a loop over single images, metrics against the registry's functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import Tensor, nn

from raybench.conformance.metrics import toy_context, toy_outputs
from raybench.data import Pixels, Split
from raybench.errors import MetricUnavailable
from raybench.evaluation import BATCH_SIZE, FINAL_SPLITS, SEARCH_SPLITS, measure, outputs_of, pack, splits_for, unpack
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import CLASSIFICATION, LOWER, METRICS, MetricEntry
from raybench.rules import OBJECTIVES
from raybench.seeding import seeded_globals

CONTEXT = MetricContext(4)


def split_of(n: int, seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(seed)
    one = torch.ones(1, 1, 1, 1)
    images = torch.randint(0, 256, (n, 1, 5, 5), generator=draw, dtype=torch.uint8)
    return Split(images, torch.randint(4, (n,), generator=draw), torch.arange(n), Pixels(0.3 * one, 0.5 * one))


def model_of() -> nn.Module:
    with seeded_globals(0):
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Dropout(0.5), nn.Linear(25, 4)).train()


def test_logits_are_those_of_the_model_in_evaluation_mode() -> None:
    splits = {"retain": split_of(9), "forget": split_of(3, 1), "extra": split_of(2)}
    model = model_of()
    outputs = outputs_of(model, splits, FINAL_SPLITS)
    assert sorted(outputs) == ["forget", "retain"]
    reference = model_of().eval()
    for name in outputs:
        images, labels = splits[name].tensors()
        assert torch.equal(outputs[name].labels, labels)
        one_by_one = torch.cat([reference(x[None]) for x in images])
        torch.testing.assert_close(outputs[name].logits, one_by_one.detach())
    assert not outputs["retain"].logits.requires_grad
    assert not outputs["retain"].logits.is_inference()  # a metric may fit something on them


def test_batches_have_the_size_of_the_protocol() -> None:
    sizes: list[int] = []

    def predictor(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.zeros(len(images), 4, dtype=torch.bfloat16)

    outputs = outputs_of(predictor, {"test": split_of(BATCH_SIZE + 5)}, ["test"])
    assert sizes == [BATCH_SIZE, 5]
    assert outputs["test"].logits.dtype == torch.float32


def test_a_search_never_runs_on_the_test_set() -> None:
    assert not any("test" in name for name in SEARCH_SPLITS)
    assert splits_for(final=False) == SEARCH_SPLITS
    assert set(splits_for(final=True)) == {*SEARCH_SPLITS, "test", "test_forgotten", "test_triggered"}


def test_pack_and_unpack() -> None:
    splits = {"retain": split_of(9), "validation_forgotten": split_of(2, 1), "test": split_of(0)}
    outputs = outputs_of(model_of(), splits, FINAL_SPLITS)
    back = unpack(pack(outputs))
    for name in ("retain", "validation_forgotten"):
        assert torch.equal(back[name].logits, outputs[name].logits)
        assert torch.equal(back[name].labels, outputs[name].labels)
    assert not back.has("test")


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(outputs: Outputs, context: MetricContext) -> float:
        return float(len(outputs["retain"]))

    def pair(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
        return len(outputs["retain"]) / len(retrained["retain"])

    def absent(outputs: Outputs, context: MetricContext) -> float:
        raise MetricUnavailable("not today")

    def broken(outputs: Outputs, context: MetricContext) -> float:
        raise ZeroDivisionError

    METRICS.names()
    for name, fn, options in (
        ("t_size", size, {}),
        ("t_pair", pair, {"pair": True, "direction": LOWER}),
        ("t_ratio", pair, {"pair": True}),
        ("t_absent", absent, {}),
        ("t_broken", broken, {}),
        ("t_nan", lambda outputs, context: float("nan"), {}),
        ("t_inf", lambda outputs, context: float("inf"), {}),
        ("t_final", size, {"final_only": True}),
    ):
        entry: dict[str, Any] = {"name": name, "fn": fn, **options}
        monkeypatch.setitem(METRICS._entries, name, MetricEntry(**entry))


def sized(n: int) -> Outputs:
    return Outputs({"retain": SplitOutputs(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64))})


@pytest.mark.usefixtures("metrics")
def test_values_gaps_and_reasons() -> None:
    columns, missing = measure(["t_size", "t_pair", "t_absent", "t_nan", "t_inf"], sized(6), sized(4), CONTEXT)
    assert columns == {
        "t_size": 6.0,
        "t_size_retrained": 4.0,
        "t_size_gap": 2.0,
        "t_pair": 1.5,
        "t_pair_retrained": None,
        "t_pair_gap": None,
        **{f"{name}{part}": None for name in ("t_absent", "t_nan", "t_inf") for part in ("", "_retrained", "_gap")},
    }
    assert missing == {
        "t_absent": "not today",
        "t_nan": "t_nan came out as nan",
        "t_inf": "t_inf came out as inf",
    }


@pytest.mark.usefixtures("metrics")
def test_a_ratio_has_the_gap_from_the_retrained_model_s_own() -> None:
    columns, missing = measure(["t_ratio"], sized(6), sized(4), CONTEXT)
    assert columns == {"t_ratio": 1.5, "t_ratio_retrained": 1.0, "t_ratio_gap": 0.5}
    assert not missing


@pytest.mark.usefixtures("metrics")
def test_without_a_retrained_model_gaps_are_null() -> None:
    columns, missing = measure(["t_size", "t_pair"], sized(6), None, CONTEXT)
    assert (columns["t_size"], columns["t_size_retrained"], columns["t_size_gap"]) == (6.0, None, None)
    assert columns["t_pair"] is None
    assert "needs a retrained model" in missing["t_pair"]


@pytest.mark.usefixtures("metrics")
def test_metrics_of_the_test_set_are_for_finals() -> None:
    columns, missing = measure(["t_final"], sized(6), sized(4), MetricContext(4, "validation"))
    assert columns["t_final"] is columns["t_final_retrained"] is None
    assert "never" in missing["t_final"]
    assert measure(["t_final"], sized(6), sized(4), CONTEXT)[0]["t_final"] == 6.0


def test_attacks_that_fit_a_classifier_are_for_finals_and_no_search_selects_by_one() -> None:
    fitting = [entry.name for entry in METRICS if entry.fits]
    assert {"confidence_attack", "loss_attack_accuracy"} <= set(fitting)
    assert not {metric for metric, _ in OBJECTIVES.values()} & set(fitting)
    for held_out, expected in (("validation", None), ("test", 0.0)):
        outputs = toy_outputs(1, False)
        columns, missing = measure(fitting, outputs, outputs, toy_context(False, held_out=held_out))
        gaps = {name: columns[f"{name}_gap"] for name in fitting}
        assert gaps == dict.fromkeys(fitting, expected)
        assert all("fits a classifier" in missing.get(name, "") for name in fitting) == (expected is None)


def test_what_fits_a_classifier_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[str] = []
    for machine in (SVC, LogisticRegression):
        fit = machine.fit
        monkeypatch.setattr(machine, "fit", lambda self, *a, _fit=fit, **k: fitted.append("") or _fit(self, *a, **k))
    for entry in METRICS:
        if entry.probe or entry.pool or CLASSIFICATION not in entry.tasks:
            continue
        fitted.clear()
        measure([entry.name], toy_outputs(1, True), toy_outputs(2, True), toy_context(True))
        if not entry.final_only:
            assert bool(fitted) == entry.fits, entry.name


@pytest.mark.usefixtures("metrics")
def test_a_bug_in_a_metric_is_not_a_missing_value() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(["t_broken"], sized(6), sized(4), CONTEXT)

"""Published numbers: the files, and the verdicts on hand-made cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from raybench.experiment import Experiment, load_experiment
from raybench.leaderboard.comparison import ONE_SEED, SCHEMA, compare
from raybench.leaderboard.published import Cell, StandIn, parse_published, published_names, read_published
from raybench.registry import METRICS

COSTS = {"unlearn_s", "speedup"}  # columns of every row that are no metrics
DOCUMENTS = ("afim", "deepclean", "gkt", "mnemonic", "rewind")
SCALES = ("tiny", "full")
PROBLEM = ("cifar10", "resnet18", "class(0)")
KNOWN = {
    "methods": {"deepclean", "retrain", "ssd"},
    "models": {"resnet18", "lenet5"},
    "datasets": {"cifar10", "digits"},
    "scenarios": {"class", "random"},
}


# The files


def test_all_documents_have_a_file() -> None:
    assert tuple(published_names()) == DOCUMENTS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_file_is_well_formed(name: str) -> None:
    published = read_published(name)
    assert published.cells
    assert published.paper
    assert {cell.table for cell in published.cells} == set(published.tables)
    assert set(published.scales) == set(SCALES)
    for cell in published.cells:
        where = (cell.table, cell.row, cell.what)
        assert cell.metric in METRICS or cell.metric in COSTS if cell.metric else cell.reason, where
        assert cell.source, where
        assert cell.evidence, where
        assert 0.0 <= cell.tolerance < math.inf, where
        if cell.unit in ("percent", "fraction") and cell.published is not None:
            low = -1.0 if cell.part == "gap" or "minus" in cell.label else 0.0
            assert low <= cell.published <= 1.0, where


def test_afim_has_claims_and_no_numbers() -> None:
    assert all(cell.published is None for cell in read_published("afim").cells)


def test_numbers_as_printed() -> None:
    """Spot checks against the sources, written down a second time."""
    cells = {
        (c.table, c.row, c.dataset, c.model, c.scenario, c.metric, c.part, c.variant, c.at): c
        for name in DOCUMENTS
        for c in read_published(name).cells
    }

    def value(*key: Any) -> float | None:
        return cells[key].published

    vit = ("cifar10", "vit_b16", "random(0.1)")
    assert value("slides", "DeepClean", *vit, "forget_accuracy", "gap", "", None) == pytest.approx(-0.022)
    assert value("slides", "Gold", *vit, "unlearn_s", "value", "", None) == 7848
    uniform = "cifar10 lambdas, t_mix=0.3"
    mnc = cells["tables_2_3", "MNC", *PROBLEM, "a_r", "value", uniform, None]
    assert (mnc.published, mnc.sd) == (pytest.approx(0.944), pytest.approx(0.001))
    assert mnc.tolerance == pytest.approx(0.0015)
    five = ("cifar10", "resnet18", "class(5)")
    assert value("table_7", "MNC", *five, "e_f", "value", uniform, None) == pytest.approx(0.998)
    gkt = ("mnist", "allcnn", "class(0)", "test_accuracy_forgotten", "value", "official, entropy_cutoff=None", 850)
    assert value("notebook_gkt", "GKT", *gkt) == pytest.approx(0.533)
    half = ("cifar10", "resnet18", "random(0.5)")
    ours = cells["table_1", "Proposed", *half, "confidence_attack", "value", "", None]
    assert (ours.published, ours.sd) == (pytest.approx(0.3194), pytest.approx(0.0456))


def experiment_of(name: str, scale: str) -> Experiment:
    return load_experiment(f"reproduce_{name}_{scale}")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_stand_ins_are_problems_of_the_spec(name: str, scale: str) -> None:
    """Else every cell would read 'not run'."""
    experiment, published = experiment_of(name, scale), read_published(name)
    problems = {(c.dataset.label, c.model.label, c.scenario.label) for c in experiment.cells}
    named = {item.ours for item in published.scales[scale] if item.ours is not None}
    assert named == problems
    assert experiment.name == f"reproduce_{name}_{scale}"
    assert ("GPU" in experiment.description and "hours" in experiment.description) == (scale == "full")
    if scale == "tiny":
        assert all(item.reason for item in published.scales[scale]), "a smaller problem is compared with nothing"
    wanted = {(cell.method, cell.variant) for cell in published.cells}
    lines = {(candidate.method, candidate.variant) for candidate in experiment.candidates}
    assert {("original", ""), ("retrain", "")} <= lines
    assert (wanted & lines) - {("original", ""), ("retrain", "")}
    measured = {*experiment.metrics, *COSTS}
    for cell in published.cells:
        if (cell.method, cell.variant) in lines and cell.metric is not None and cell.problem in {
            item.published for item in published.scales[scale] if item.ours
        }:  # fmt: skip
            assert cell.metric in measured, (cell.table, cell.row, cell.metric)


def table(**changes: Any) -> dict[str, Any]:
    row = {"row": "X", "method": "ssd", "metric": "a_r", "values": [50.0]}
    row |= {key: changes.pop(key) for key in list(changes) if key in row}
    made = {
        "id": "t", "title": "T", "source": "s", "evidence": "stated", "unit": "percent", "dataset": "cifar10",
        "model": "resnet18", "scenario": "class(0)", "columns": [{}], "rows": [row],
    }  # fmt: skip
    return made | changes


def parsed(**changes: Any) -> tuple[Cell, ...]:
    raw = {"title": "T", "paper": "P", "tables": [table(**changes)], "scales": {}}
    return parse_published("x", raw).cells


def test_tolerance_adds_sd_reading_and_rounding_in_our_units() -> None:
    (cell,) = parsed(values=[[50.0, 2.0]], read_off=1.0, rounding=0.5)
    assert (cell.published, cell.sd, cell.tolerance) == (0.5, 0.02, pytest.approx(0.035))
    (cell,) = parsed(values=[60.0], unit="s", rounding=0.5)
    assert (cell.published, cell.tolerance) == (60.0, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0, 2.0]}, "2 values, 1 columns"),
        ({"metric": None}, "must say why"),
        ({"unit": "points"}, "points"),
        ({"part": "ratio"}, "part must be"),
        ({"at": "start"}, "at a step or peak"),
        ({"values": [None], "claim": True, "source": None}, "source must be text"),
        ({"values": [1.0], "claim": True}, "a claim has no number"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_broken_file_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(**changes)


def test_scales_must_name_published_problems() -> None:
    raw = {"title": "T", "paper": "P", "tables": [table()]}
    item = {"published": ["mnist", "mlp", "class(0)"], "ours": None, "reason": "r"}
    with pytest.raises(ValueError, match="which no table has"):
        parse_published("x", {**raw, "scales": {"tiny": [item]}})
    item = {"published": list(PROBLEM), "ours": None}
    with pytest.raises(ValueError, match="without a reason"):
        parse_published("x", {**raw, "scales": {"tiny": [item]}})


# The verdicts

Judge = Callable[..., dict[str, Any]]


def cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "table": "t", "row": "DeepClean", "method": "deepclean", "dataset": PROBLEM[0], "model": PROBLEM[1],
        "scenario": PROBLEM[2], "metric": "a_r", "published": 0.9, "sd": None, "tolerance": 0.0, "unit": "percent",
        "source": "s", "evidence": "stated",
    }  # fmt: skip
    return Cell(**(fields | changes))


def line(**changes: Any) -> dict[str, Any]:
    made = dict(zip(("dataset", "model", "scenario"), PROBLEM, strict=True))
    made |= {"method": "deepclean", "variant": "", "status": "ok", "reason": None, "n": 3}
    made |= {"a_r": 0.92, "a_r_lo": 0.905, "a_r_hi": 0.935, "a_r_gap": -0.02, "a_r_gap_lo": -0.03, "a_r_gap_hi": -0.01}
    return made | changes


def trial(seed: int, **changes: Any) -> dict[str, Any]:
    made = dict(zip(("dataset", "model", "scenario"), PROBLEM, strict=True))
    made |= {"trial_id": f"t{seed}", "method": "deepclean", "variant": "", "phase": "final", "status": "ok"}
    return made | {"train_seed": seed, "unlearn_seed": 0, "speedup": 2.0 + seed} | changes


@pytest.fixture
def judge() -> Judge:
    def made(
        asked: Cell,
        stand_ins: list[StandIn] | None = None,
        lines: list[dict[str, Any]] | None = None,
        points: list[tuple[str, str, int, float]] | None = None,
    ) -> dict[str, Any]:
        series = pd.DataFrame(points or [], columns=["trial_id", "name", "step", "y"])
        mapped = [StandIn(PROBLEM, PROBLEM)] if stand_ins is None else stand_ins
        trials = pd.DataFrame([trial(seed) for seed in range(3)] + [trial(9, status="failed"), trial(8, method="ssd")])
        frame = compare([asked], mapped, KNOWN, pd.DataFrame([line()] if lines is None else lines), trials, series)
        assert list(frame.columns) == SCHEMA.names
        return {str(k): v for k, v in frame.iloc[0].to_dict().items()}

    return made


def test_inside_our_interval_agrees(judge: Judge) -> None:
    found = judge(cell(published=0.91))
    assert (found["verdict"], found["reason"]) == ("agrees", "")
    assert found["difference"] == pytest.approx(0.01)
    assert (found["ours"], found["ours_lo"], found["ours_hi"], found["n"]) == (0.92, 0.905, 0.935, 3)


def test_outside_differs_unless_the_tolerance_reaches(judge: Judge) -> None:
    assert judge(cell(published=0.90))["verdict"] == "differs"
    assert judge(cell(published=0.90, tolerance=0.004))["verdict"] == "differs"
    assert judge(cell(published=0.90, tolerance=0.006))["verdict"] == "agrees"
    assert judge(cell(published=0.94))["verdict"] == "differs"
    assert judge(cell(published=0.94, tolerance=0.006))["verdict"] == "agrees"


def test_gap_is_compared_with_our_gap(judge: Judge) -> None:
    found = judge(cell(published=-0.015, part="gap"))
    assert (found["verdict"], found["ours"]) == ("agrees", -0.02)
    assert found["metric"] == "a_r, minus retrained"


def test_one_seed_is_not_judged(judge: Judge) -> None:
    found = judge(cell(published=0.92), lines=[line(n=1, a_r_lo=None, a_r_hi=None)])
    assert (found["verdict"], found["reason"]) == ("not comparable", ONE_SEED)
    assert found["difference"] == pytest.approx(0.0)


def test_reduced_problem_is_shown_and_not_judged(judge: Judge) -> None:
    small = StandIn(PROBLEM, ("digits", "lenet5", "class(0)"), "a subset")
    there = line(dataset="digits", model="lenet5")
    found = judge(cell(published=0.92), [small], [there])
    assert (found["verdict"], found["reason"], found["ours"]) == ("not comparable", "a subset", 0.92)
    assert found["our_problem"] == "digits / lenet5 / class(0)"
    assert found["difference"] == pytest.approx(0.0)


def test_first_stand_in_that_was_run_counts(judge: Judge) -> None:
    whole, part = StandIn(PROBLEM, ("cifar10", "lenet5", "class(0)")), StandIn(PROBLEM, PROBLEM, "a subset")
    assert judge(cell(), [whole, part])["reason"] == "a subset"


def test_a_line_of_the_gpu_stands_for_one_without_a_device(judge: Judge) -> None:
    lines = [line(variant=device, a_r=a_r) for device, a_r in (("cpu", 0.92), ("cuda", 0.93))]
    assert judge(cell(), lines=lines)["ours"] == 0.93
    assert judge(cell(), lines=lines[:1])["ours"] == 0.92
    assert judge(cell(variant="slow"), lines=[line(variant="cuda, slow")])["ours"] == 0.92


def test_spec_run_on_other_data_is_shown_and_not_judged(judge: Judge) -> None:
    found = judge(cell(published=0.92), lines=[line(dataset="npz(path=part.npz)")])
    assert (found["verdict"], found["reason"], found["ours"]) == ("not comparable", "run on npz(path=part.npz)", 0.92)
    assert found["our_problem"] == "npz(path=part.npz) / resnet18 / class(0)"
    two = [line(dataset="npz(path=part.npz)"), line(dataset="digits")]
    assert judge(cell(), lines=two)["verdict"] == "not run", "which of the two is meant is not known"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (cell(method=None, row="SFDN"), "method SFDN"),
        (cell(method="lwsf"), "method lwsf"),
        (cell(model="vgg16"), "model vgg16"),
        (cell(dataset="imagenet", scenario="backdoor(0.2)"), "dataset imagenet, scenario backdoor"),
    ],
)
def test_not_built(judge: Judge, asked: Cell, reason: str) -> None:
    found = judge(asked)
    assert (found["verdict"], found["reason"]) == ("not built", reason)
    assert found["ours"] is None


def test_missing_model_with_a_stand_in_is_shown(judge: Judge) -> None:
    asked = cell(model="vgg16")
    assert judge(asked, [StandIn(asked.problem, PROBLEM, "another model")])["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("asked", "stand_ins", "reason"),
    [
        (cell(method="ssd"), None, "no line ssd in these results"),
        (cell(variant="x"), None, r"no line deepclean \(x\)"),
        (cell(), [], "no problem of this scale"),
        (cell(), [StandIn(PROBLEM, None, "too long here")], "too long here"),
        (cell(at=850), None, "checkpoint at step 850"),
        (cell(at="peak"), None, "no curve"),
    ],
)
def test_not_run(judge: Judge, asked: Cell, stand_ins: list[StandIn] | None, reason: str) -> None:
    found = judge(asked, stand_ins)
    assert found["verdict"] == "not run"
    assert pd.Series([found["reason"]]).str.contains(reason).all()


def test_line_without_a_good_row_is_not_run(judge: Judge) -> None:
    broken = line(status="failed", reason="out of memory", a_r=None, a_r_lo=None, a_r_hi=None)
    found = judge(cell(), lines=[broken])
    assert (found["verdict"], found["reason"]) == ("not run", "failed: out of memory")


def test_partly_failed_line_says_so(judge: Judge) -> None:
    found = judge(cell(published=0.92), lines=[line(status="failed", reason="1 of 3 failed: out of memory")])
    assert (found["verdict"], found["reason"]) == ("agrees", "1 of 3 failed: out of memory")


def test_not_comparable_for_reasons_of_the_cell(judge: Judge) -> None:
    assert judge(cell(reason="seconds of another machine", note="n"))["reason"] == "seconds of another machine; n"
    found = judge(cell(metric=None, label="MIA", reason="not defined"))
    assert (found["verdict"], found["reason"], found["ours"]) == ("not comparable", "not defined", None)
    found = judge(cell(metric="e_f"))
    assert (found["verdict"], found["reason"]) == ("not comparable", "e_f was not measured here")


def test_claim_without_a_number(judge: Judge) -> None:
    found = judge(cell(published=None))
    assert (found["verdict"], found["reason"]) == ("not comparable", "the source gives no number")
    assert (found["ours"], found["difference"]) == (0.92, None)


def test_column_without_an_interval_gets_one_from_the_trials(judge: Judge) -> None:
    found = judge(cell(metric="speedup", published=3.0, unit="ratio"), lines=[line(speedup=99.0)])
    assert found["verdict"] == "agrees"
    assert found["ours"] == pytest.approx(3.0)  # 2, 3, 4: not the failed trial, not the other method's
    assert found["ours_hi"] - found["ours"] == pytest.approx(2.484, abs=1e-3)


def test_points_of_curves(judge: Judge) -> None:
    points = [(f"t{s}", "test_accuracy", step, 0.1 * s + 0.001 * step) for s in range(3) for step in (50, 100)]
    found = judge(cell(metric="test_accuracy", at=50, published=0.2), points=points)
    assert found["ours"] == pytest.approx(0.15)
    assert found["metric"] == "test_accuracy at step 50"
    assert judge(cell(metric="test_accuracy", at="peak"), points=points)["ours"] == pytest.approx(0.2)
    points = [(i, "test_forgotten_accuracy", s, y) for i, _, s, y in points]
    assert judge(cell(metric="test_accuracy_forgotten", at=100), points=points)["ours"] == pytest.approx(0.2)

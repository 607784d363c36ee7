"""What differs between two results: planted losses are found, equal methods are not told apart, by any road in."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import raybench
from raybench import cli
from raybench.errors import UserError
from raybench.leaderboard.differences import COLUMNS, compare, found_difference, render_differences, summary
from raybench.leaderboard.query import load_trials, write_leaderboard
from raybench.leaderboard.schema import MetricInfo
from raybench.leaderboard.store import ResultStore

METRICS = {"retain_accuracy": 0.99, "forget_accuracy": 0.5, "test_accuracy": 0.90, "distance": 0.1, "retain_loss": 0.2}
INFOS = [MetricInfo(name, 1, "nats" if name == "retain_loss" else "fraction", "match_retrained") for name in METRICS]
METHODS = ("finetune", "scrub")


@pytest.fixture
def folder(tmp_path, make_row):
    """Writes a results folder of both methods: what the train seed does to all alike, and half a point of noise."""

    def write(name: str, draw: int, seeds: range, losses: dict[str, float] | None = None, **options: Any) -> str:
        own, floor = np.random.default_rng(draw), options.pop("floor", 0.0)
        scenario = {"name": "class", "options": {"classes": [0]}}
        problem = {"dataset": {"name": "digits"}, "checksum": "c0", "model": {"name": "lenet5"}, "scenario": scenario}
        store = ResultStore.open_for_writing(tmp_path / name, INFOS)
        rows = []
        for seed in seeds:
            common = np.random.default_rng(1000 + seed).normal(0, 0.01, len(METRICS))
            at = problem | {"recipe": options.get("recipe", {}), "train_seed": seed}
            for method in (*METHODS, "retrain"):
                spec = {"problem": at, "method": method, "method_version": 1, "hparams": {}, "unlearn_seed": 0}
                spec |= {"phase": "final", "training": {}, "variant": ""}
                values: dict[str, Any] = {}
                for metric, shift in zip(METRICS, common, strict=True):
                    planted = (losses or {}).get(metric, 0.0) if method == "scrub" else 0.0
                    values[metric] = METRICS[metric] + shift + own.normal(0, 0.005) - planted
                    values |= {
                        f"{metric}_retrained": METRICS[metric],
                        f"{metric}_gap": values[metric] - METRICS[metric],
                    }
                if method == "retrain":
                    values |= {f"{m}_gap": floor * (-1) ** seed for m in METRICS}
                    values |= {m: METRICS[m] for m in METRICS}
                row = make_row(method=method, train_seed=seed, spec=json.dumps(spec), gates="{}", unlearn_s=1.0)
                is_gold = {"phase": "reference", "unlearn_seed": 1} if method == "retrain" else {}
                rows.append(row | values | is_gold | options.get(method, {}))
        store.append(rows)
        write_leaderboard(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_two_runs_of_one_method_are_not_told_apart(folder) -> None:
    """Paired on the same seeds, Welch on others; one family of all lines and metrics, so 5 % of pairs may alarm."""
    alarms = 0
    for case in range(10):
        a = folder(f"a{case}", 2 * case, range(5))
        same, other = folder(f"b{case}", 2 * case + 1, range(5)), folder(f"c{case}", 5000 + case, range(5, 10))
        paired, apart = compare(a, same), compare(a, other)
        assert set(paired["test"]) == {"paired"}
        assert set(apart["test"]) == {"Welch"}
        alarms += found_difference(paired) + found_difference(apart)
    assert alarms <= 4  # one expected of twenty
    assert not found_difference(compare(a, a))


def test_a_planted_loss_of_three_points_is_found_at_five_seeds(folder) -> None:
    a = folder("a", 0, range(5))
    b = folder("b", 1, range(5), losses={"test_accuracy": 0.03})
    frame = compare(a, b)
    found = frame[frame["verdict"] == "difference"]
    assert found[["method", "metric"]].values.tolist() == [["scrub", "test_accuracy"]]
    assert found["difference"].item() == pytest.approx(-0.03, abs=0.01)
    assert found["difference_lo"].item() < found["difference"].item() < found["difference_hi"].item() < 0
    assert list(frame.columns) == list(COLUMNS)
    # The numbers are the paired test's over all lines and metrics together.
    x, y = (load_trials(p).query("method == 'scrub'").set_index("train_seed")["test_accuracy"] for p in (a, b))
    assert found["p"].item() == pytest.approx(stats.ttest_rel(y.sort_index(), x.sort_index()).pvalue)
    assert found["p_holm"].item() == pytest.approx(found["p"].item() * frame["test"].notna().sum())
    assert found[["a", "b"]].values[0] == pytest.approx([x.mean(), y.mean()])


def test_trials_and_folders_give_the_same(folder) -> None:
    a, b = folder("a", 0, range(5)), folder("b", 1, range(5), losses={"test_accuracy": 0.03})
    from_frames = raybench.compare(raybench.load_trials(a), raybench.load_trials(b))
    drop = ["unit", "direction"]  # trials do not say them
    pd.testing.assert_frame_equal(from_frames.drop(columns=drop), compare(a, b).drop(columns=drop))


def test_under_the_floor_is_no_difference(folder) -> None:
    a = folder("a", 0, range(5), floor=0.01)
    b = folder("b", 1, range(5), losses={"test_accuracy": 0.03}, floor=0.05)
    frame = compare(a, b)
    at = frame[(frame["method"] == "scrub") & (frame["metric"] == "test_accuracy")]
    assert at["verdict"].item() == "under the floor"
    assert at["floor"].item() == pytest.approx(0.05)
    assert not found_difference(frame)
    assert "no difference, 1 under the floor: 3 lines" in summary(frame)


def test_status_and_gates_are_differences_of_their_own(folder) -> None:
    a = folder("a", 0, range(4))
    b = folder("b", 0, range(4), finetune={"gates": '{"retain_above_chance":false}'})
    c = folder("c", 0, range(4), scrub={"status": "diverged", "reason": "NaN"})
    for other, method, reason in (
        (b, "finetune", "ok -> ok, fails retain_above_chance"),
        (c, "scrub", "ok -> diverged"),
    ):
        found = compare(a, other).query("verdict == 'difference'")
        assert found[["method", "metric", "reason"]].values.tolist() == [[method, "status", reason]]
        assert reason in render_differences(compare(a, other))


def test_other_lines_and_other_trainings_are_noted(folder) -> None:
    a, b = folder("a", 0, range(3)), folder("b", 0, range(3), recipe={"lr": 0.5}, scrub={"variant": "slow"})
    frame = compare(a, b)
    assert frame.attrs["notes"] == [
        "only in a: mnist / lenet5 / class(0) / scrub",
        "only in b: mnist / lenet5 / class(0) / scrub / slow",
        "trained differently (recipe): mnist / lenet5 / class(0)",
    ]
    assert all(note in render_differences(frame) for note in frame.attrs["notes"])


def test_what_cannot_be_compared_is_refused(folder, tmp_path) -> None:
    a, few = folder("a", 0, range(5)), folder("b", 1, range(2))
    with pytest.raises(UserError, match="needs 3 train seeds a side, got 2 at most"):
        compare(a, few)
    with pytest.raises(UserError, match="did you mean test_accuracy"):
        compare(a, a, metrics=["test_acuracy"])
    other = folder("c", 1, range(5), **{m: {"protocol": "0"} for m in (*METHODS, "retrain")})
    with pytest.raises(UserError, match="one protocol version, got 0, 1"):
        compare(a, other)
    elsewhere = folder("d", 1, range(5), **{m: {"model": "mlp"} for m in (*METHODS, "retrain")})
    with pytest.raises(UserError, match="in both, got none"):
        compare(a, elsewhere)


def test_some_seeds_too_few_is_said_per_metric(folder) -> None:
    a, b = folder("a", 0, range(3)), folder("b", 1, range(3))
    trials = load_trials(b)
    trials.loc[(trials["method"] == "scrub") & (trials["train_seed"] == 2), "retain_loss"] = math.nan
    frame = compare(load_trials(a), trials)
    untested = frame[frame["verdict"] == "too few seeds"]
    assert untested[["method", "metric", "n_a", "n_b"]].values.tolist() == [["scrub", "retain_loss", 3, 2]]
    assert untested["p"].isna().all()


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json", "latex"])
def test_the_command_says_it_in_every_format(folder, capsys, form: str) -> None:
    a, b = folder("a", 0, range(5)), folder("b", 1, range(5), losses={"test_accuracy": 0.03})
    assert cli.main(["compare", a, folder("c", 2, range(5)), "--format", form]) == 0
    said = capsys.readouterr().out
    assert cli.main(["compare", a, b, "--format", form]) == 3
    found = capsys.readouterr().out
    if form == "json":
        assert (json.loads(said)["difference"], json.loads(found)["difference"]) == (False, True)
        assert len(json.loads(found)["records"]) == 3 * len(METRICS)
    elif form == "csv":
        assert (pd.read_csv(io.StringIO(found))["verdict"] == "difference").sum() == 1
    else:
        assert "no difference: 3 lines, 15 tests (15 paired), Holm over all at 0.05" in said
        assert "1 difference" in found
        assert ("test\\_accuracy" if form == "latex" else "test_accuracy %") in found
        assert cli.main(["compare", a, b, "--format", form, "--all", "--metrics", "test_accuracy,distance"]) == 3
        assert "no difference" in capsys.readouterr().out

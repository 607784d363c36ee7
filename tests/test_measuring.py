"""Metrics that come after the trials: from the oracle pool, and added to a finished experiment. No trial reruns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.store import ResultStore
from raybench.measuring import NO_WEIGHTS, NOT_KEPT
from raybench.registry import METRICS
from raybench.retry import retry_failed
from raybench.run import Options, run

BASE = ["retain_accuracy", "forget_accuracy", "test_accuracy"]
POOL = ["rmia_auc", "lira_auc", "ulira_auc", "ulira_worst"]
PROBLEM = {
    "dataset": {"name": "digits", "train_size": 1150},
    "models": [{"name": "mlp", "hidden": [16]}],
    "scenarios": [{"random": {"fraction": 0.2}}],
}


@pytest.fixture
def go(tmp_path: Path, make_spec: Any) -> Any:
    """``(**changes of the spec)`` -> outcome; one results folder and one store."""

    def start(results: str = "out", **changes: Any) -> Any:
        spec = make_spec(**{"problems": [PROBLEM], "metrics": BASE} | changes)
        options = Options(results=str(tmp_path / results), store=str(tmp_path / "store"), serial=True, quiet=True)
        return run(spec, options=options)

    return start


def finals(folder: Path) -> pd.DataFrame:
    rows = load_trials(folder)
    return rows[rows["phase"].isin(["final", "reference"])].set_index(["method", "unlearn_seed"])


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "trials").glob("*.parquet")}


def test_an_added_metric_is_what_the_trial_would_have_measured(go: Any, tmp_path: Path) -> None:
    late = ["calibration_error", "e_f", "js_divergence", "loss_attack_auc"]
    assert go().measured == 0
    before = parts(tmp_path / "out")
    outcome = go(metrics=[*BASE, *late])
    # original, two retrained models and two finals; searches are not measured anew
    assert (outcome.ran, outcome.trained, outcome.measured) == (0, 0, 5)
    assert parts(tmp_path / "out") == before
    go("whole", metrics=[*BASE, *late])
    columns = [f"{name}{end}" for name in late for end in ("", "_retrained", "_gap")]
    added, whole = finals(tmp_path / "out"), finals(tmp_path / "whole")
    pd.testing.assert_frame_equal(added[columns], whole[columns])
    assert all("class scenarios" in json.loads(text)["e_f"] for text in added["missing"])
    assert list(added["missing"]) == list(whole["missing"])
    lines, expected = (load_leaderboard(tmp_path / name).set_index("method") for name in ("out", "whole"))
    pd.testing.assert_frame_equal(lines[late], expected[late])
    assert go(metrics=[*BASE, *late]).measured == 0


def test_a_new_version_or_evaluate_seed_is_measured_anew(go: Any, tmp_path: Path, monkeypatch: Any) -> None:
    go(metrics=[*BASE, "calibration_error"])
    entry = METRICS["calibration_error"]
    changed = type(entry)(**{**vars(entry), "version": entry.version + 1, "fn": lambda outputs, context: 0.125})
    monkeypatch.setitem(METRICS._entries, "calibration_error", changed)
    assert go(metrics=[*BASE, "calibration_error"]).measured == 5
    assert set(finals(tmp_path / "out")["calibration_error"]) == {0.125}
    assert go(metrics=[*BASE, "calibration_error"]).measured == 0
    again = go(metrics=[*BASE, "calibration_error"], seeds={"train": [0], "evaluate": 3})
    assert (again.ran, again.measured) == (0, 5)


def test_what_was_not_kept_has_a_reason(go: Any, tmp_path: Path) -> None:
    go(keep=[])
    go(keep=[], metrics=[*BASE, "calibration_error", "relearn_time"])
    rows = finals(tmp_path / "out")
    for method in ("finetune", "gradient_ascent"):
        told = json.loads(rows.loc[(method, 0), "missing"])
        assert told["calibration_error"] == NOT_KEPT
        assert told["relearn_time"] == NOT_KEPT
    assert rows.loc[("original", 0), "calibration_error"] > 0  # outputs of references are in the store


@pytest.mark.parametrize("keep", [["outputs"], ["outputs", "weights"]])
def test_a_probe_needs_the_weights(go: Any, tmp_path: Path, keep: list[str]) -> None:
    go(keep=keep)
    assert go(keep=keep, metrics=[*BASE, "relearn_time"]).ran == 0
    go("whole", keep=keep, metrics=[*BASE, "relearn_time"])
    rows, whole = finals(tmp_path / "out"), finals(tmp_path / "whole")
    if "weights" in keep:
        assert list(rows["relearn_time"]) == list(whole["relearn_time"])
        assert rows["relearn_time"].notna().all()
    else:
        assert json.loads(rows.loc[("finetune", 0), "missing"])["relearn_time"] == NO_WEIGHTS
        assert rows.loc[("original", 0), "relearn_time"] == whole.loc[("original", 0), "relearn_time"]


def test_a_bug_in_a_metric_is_its_reason_and_the_others_stand(go: Any, tmp_path: Path, monkeypatch: Any) -> None:
    go()

    def broken(outputs: Any, context: Any) -> float:
        raise RuntimeError("no luck\ntoday")

    entry = METRICS["calibration_error"]
    monkeypatch.setitem(METRICS._entries, "calibration_error", type(entry)(**{**vars(entry), "fn": broken}))
    go(metrics=[*BASE, "calibration_error", "js_divergence"])
    row = finals(tmp_path / "out").loc[("finetune", 0)]
    assert json.loads(row["missing"])["calibration_error"].startswith("RuntimeError: no luck today (test_measuring.py:")
    assert row["js_divergence"] >= 0


def test_the_pool_is_trained_once_grows_and_serves_every_method(go: Any, tmp_path: Path) -> None:
    first = go(oracles=6, metrics=[*BASE, *POOL], methods=["finetune"])
    # 6 originals, 5 retrained beside those with rows (0 and 1), and 6 unlearning runs
    assert (first.trained, first.measured) == (3 + 6 + 5, 4)
    rows = load_trials(tmp_path / "out")
    oracles = rows[rows["phase"] == "oracle"]
    assert oracles.groupby("method").size().to_dict() == {"finetune": 6, "original": 6, "retrain": 5}
    assert set(oracles["status"]) == {"ok"}
    assert rows["trial_id"].is_unique
    table = finals(tmp_path / "out")
    assert table[POOL].notna().all().all()
    assert table.loc[("retrain", 0), "rmia_auc_gap"] == 0.0
    assert (table["ulira_auc_retrained"].nunique(), table["missing"].isna().all()) == (1, True)

    second = go(oracles=6, metrics=[*BASE, *POOL], methods=["finetune", "gradient_ascent"])
    assert second.trained == 0
    assert second.measured == 1
    more = go(oracles=7, metrics=[*BASE, *POOL], methods=["finetune", "gradient_ascent"])
    assert (more.trained, more.ran, more.measured) == (2, 4, 5)  # an original and a retrained model, two unlearnings
    assert go(oracles=7, metrics=[*BASE, *POOL], methods=["finetune", "gradient_ascent"]).measured == 0
    pools = set(pd.read_parquet(tmp_path / "out" / "metrics")["pool"])
    assert pools == {"oracles=6", "oracles=7"}
    line = load_leaderboard(tmp_path / "out").set_index("method").loc["retrain"]
    assert line["ulira_auc"] == pytest.approx(0.5, abs=0.1)


def test_shadows_choose_a_for_rmia(go: Any, tmp_path: Path) -> None:
    go(oracles=2, metrics=[*BASE, "rmia_auc"])
    fixed = finals(tmp_path / "out")["rmia_auc"].copy()
    outcome = go(oracles=2, shadows=2, metrics=[*BASE, "rmia_auc"])
    assert (outcome.trained, outcome.ran, outcome.measured) == (2, 2, 5)
    chosen = finals(tmp_path / "out")["rmia_auc"]
    assert chosen.notna().all()
    assert not torch.equal(torch.tensor(chosen.to_numpy()), torch.tensor(fixed.to_numpy()))


def test_no_oracles_and_oracles_that_failed_have_a_reason(go: Any, flaky: Any, tmp_path: Path) -> None:
    go(metrics=[*BASE, *POOL])
    told = json.loads(finals(tmp_path / "out").loc[("finetune", 0), "missing"])
    assert all("set oracles in the spec" in told[name] for name in POOL)
    spec = {"plugins": ["flaky_plugin"], "methods": ["flaky"], "metrics": [*BASE, "ulira_auc"], "seeds": {"train": [0]}}
    go("pool", **spec)
    flaky("always")
    outcome = go("pool", oracles=3, **spec)
    assert outcome.exit_code == 1
    rows = finals(tmp_path / "pool")
    assert "3 of 3 unlearned models" in json.loads(rows.loc[("flaky", 0), "missing"])["ulira_auc"]
    assert go("pool", oracles=3, **spec).measured == 0
    flaky("never")
    assert (
        retry_failed(str(tmp_path / "pool"), Options(store=str(tmp_path / "store"), serial=True, quiet=True)).bad == []
    )
    row = finals(tmp_path / "pool").loc[("flaky", 0)]
    assert row["ulira_auc"] > 0
    assert "got 1" in json.loads(row["missing"])["ulira_auc"]  # gold against gold needs more; the value stands


@pytest.mark.parametrize("count", [0, 2, 4])
def test_killed_while_measuring_it_goes_on(go: Any, tmp_path: Path, monkeypatch: Any, count: int) -> None:
    go()
    append, done = ResultStore.append_metrics, 0

    class KilledError(BaseException):
        pass

    def dying(self: ResultStore, records: Any) -> None:
        nonlocal done
        if done == count:
            raise KilledError
        append(self, records)
        done += 1

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "append_metrics", dying)
        with pytest.raises(KilledError):
            go(metrics=[*BASE, "calibration_error"])
    assert go(metrics=[*BASE, "calibration_error"]).measured == 5 - count
    assert finals(tmp_path / "out")["calibration_error"].notna().all()


def test_a_clean_model_is_measured_by_its_own_outputs(go: Any, tmp_path: Path) -> None:
    problem = PROBLEM | {"scenarios": [{"label_noise": {"fraction": 0.2}}]}
    late = ["js_divergence", "calibration_error", "loss_attack_auc"]
    go(problems=[problem], methods=["original"], keep=["outputs"])
    go(problems=[problem], methods=["original"], metrics=[*BASE, *late, "rmia_auc", "ulira_auc"], oracles=6)
    go("whole", problems=[problem], methods=["original"], metrics=[*BASE, *late])
    added, whole = (
        load_trials(tmp_path / name).query("phase == 'reference'").set_index(["method", "variant", "unlearn_seed"])
        for name in ("out", "whole")
    )
    clean, retrained = added.loc[("retrain", "clean", 0)], added.loc[("retrain", "", 0)]
    assert list(clean[late]) == list(whole.loc[("retrain", "clean", 0), late])
    assert clean["js_divergence"] > 0 == retrained["js_divergence"]
    assert clean["rmia_auc"] != retrained["rmia_auc"]
    assert "no world of clean models" in json.loads(clean["missing"])["ulira_auc"]

"""The retrained-free objective from spec to leaderboard: real rows, and what a search by it may not depend on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.errors import UserError
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.problem import load_data
from raybench.registry import METHODS
from raybench.run import Options, run
from raybench.spec import REFERENCE, SEARCH, Choice, ProblemSpec, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

ROOT = Path(__file__).parent.parent
METRICS = ("retrained_free", "distance_validation")
DATA = Choice("digits", {"train_size": 600, "test_size": 300})
REQUESTS = {
    "class": Choice("class", {"classes": [0]}),
    "random": Choice("random", {"fraction": 0.3}),
    "wrong labels": Choice("label_noise", {"fraction": 0.2}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


def row_of(store: str, request: Choice, method: str, phase: str, index: int = 0, seed: int = 0) -> dict[str, Any]:
    recipe = {"augment": False, "weight_decay": 0.0, "epochs": 30, "batch_size": 32}
    checksum, model = load_data(DATA, None, False)[1], Choice("mlp", {"hidden": [64]})
    problem = ProblemSpec(DATA, checksum, model, request, recipe, seed, validation=0.5)
    spec = TrialSpec(problem, method, METHODS[method].version, {}, index, phase)
    return run_trial(spec, {}, Workshop(Settings("test", store, METRICS)))


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_retrained_model_is_near_and_the_original_is_not(store: str, request_: Choice) -> None:
    """The objective knows no retrained model, and still takes one for good work and the original for none."""
    original, retrained = (row_of(store, request_, method, REFERENCE) for method in ("original", "retrain"))
    assert original["missing"] is retrained["missing"] is None
    assert retrained["retrained_free"] < min(0.03, original["retrained_free"])
    assert original["retrained_free"] == pytest.approx(original["distance_validation"], abs=0.05)
    assert original["retrained_free_retrained"] == retrained["retrained_free"]
    assert original["retrained_free_gap"] == original["retrained_free"] - retrained["retrained_free"]


def test_search_rows_do_not_depend_on_the_retrained_model(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = row_of(store, REQUESTS["random"], "finetune", SEARCH)
    retrained = Workshop(Settings("test", store, METRICS)).references.__class__.retrained
    monkeypatch.setattr(
        "raybench.references.References.retrained", lambda self, problem, index: retrained(self, problem, index + 1)
    )
    other = row_of(store, REQUESTS["random"], "finetune", SEARCH)
    assert one["distance_validation"] != other["distance_validation"]
    assert one["retrained_free"] == other["retrained_free"]
    assert one["retrain_share"] == other["retrain_share"]


def test_a_search_by_it(make_spec: Any, tmp_path: Path) -> None:
    search = {"trials": 3, "round_size": 2, "objective": "retrained_free"}
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
    assert run(make_spec(search=search), options=options).exit_code == 0
    trials = load_trials(tmp_path / "out")
    searched, finals = (trials[trials["phase"] == phase] for phase in ("search", "final"))
    assert set(searched["selected_on"]) == set(finals["selected_on"]) == {"validation"}
    lines = load_leaderboard(tmp_path / "out").set_index("method")
    for method, group in searched.groupby("method"):
        best = group.loc[group["retrained_free"].idxmin()]
        assert set(finals.loc[finals["method"] == method, "hparams"]) == {best["hparams"]}
        assert lines.loc[method, "tuning_s"] == pytest.approx(group["unlearn_s"].sum())
        assert lines.loc[method, "distance"] > 0.0  # measured against a retrained model, though not tuned with it


def test_search_trials_that_never_measured_it_are_refused(make_spec: Any, tmp_path: Path) -> None:
    """The first setting of every search is the default, so the two objectives would share its row."""
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
    run(make_spec(methods=["finetune"]), options=options)
    search = {"trials": 3, "round_size": 2, "objective": "retrained_free"}
    with pytest.raises(UserError, match=r"search trials that measured it, .*; give the new run another --results"):
        run(make_spec(methods=["finetune"], search=search), options=options)


# --- the script that says how far to trust it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agreement() -> Any:
    where = importlib.util.spec_from_file_location("agreement", ROOT / "jobs" / "retrained_free_agreement.py")
    assert where is not None
    assert where.loader is not None
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    return module


def test_rows_made_before_the_metric_existed_get_the_number_that_it_would_have_had(agreement: Any) -> None:
    trials = load_trials(ROOT / "results" / "retrained_free")
    originals, compared = trials[trials["method"] == "original"], 0
    for scenario, rows in trials[(trials["phase"] == "search") & (trials["status"] == "ok")].groupby("scenario"):
        original = originals[(originals["scenario"] == scenario) & (originals["train_seed"] == 0)].iloc[0]
        measured, rebuilt = rows["retrained_free"], agreement.objective(rows.drop(columns="retrained_free"), original)
        assert agreement.objective(rows, original).equals(measured)
        if str(scenario).startswith("label_noise"):
            assert rebuilt.isna().all()  # it takes the losses of labels that the columns do not tell of
        else:
            pd.testing.assert_series_equal(rebuilt, measured, check_names=False, rtol=0, atol=1e-12)
            compared += len(rows)
    assert compared > 200


def test_a_search_that_is_told_of_no_retrained_model_agrees_with_one_that_is(agreement: Any) -> None:
    found = pd.DataFrame(list(agreement.agreements(ROOT / "results" / "retrained_free")))
    tau = found.groupby(found["scenario"].str.partition("(")[0])["tau"].median()
    assert tau["class"] > 0.8
    assert tau["label_noise"] > 0.8
    assert tau["random"] > 0.4

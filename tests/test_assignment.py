"""What a method is given: all of D_f at once, a part of it, or one request after the other; and the backdoor end to
end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.problem import load_data
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.run import Options, run
from raybench.spec import FINAL, Choice, ProblemSpec, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

DIGITS = Choice("digits", {"train_size": 400, "test_size": 200})


@pytest.fixture
def spy() -> Iterator[list[dict[str, Any]]]:
    """A method ``spy`` that adds 1 to the head's bias and trains one pass on D_f; what it was given, call by call."""
    seen: list[dict[str, Any]] = []

    @METHODS.register("spy", needs={FORGET, RETAIN})
    def spy(task: Any, hp: Any) -> nn.Module:
        """Adds 1 to the bias of the head."""
        drawn = torch.rand(1, generator=task.generator).item()
        shared = task.once("noise", lambda generator: torch.rand(1, generator=generator))["value"].item()
        seen.append(
            {
                "bias": task.model.head.bias.detach().clone(),
                "forget": set(task.forget_positions.tolist()),
                "retain": set(task.retain_positions.tolist()),
                "drawn": drawn,
                "shared": shared,
                "labels": task.forget.tensors()[1],
            }
        )
        with torch.no_grad():
            task.model.head.bias += 1
            for images, _ in task.forget.batches(1000):
                task.model(images)
        return task.model

    yield seen
    METHODS._entries.pop("spy")


def trial(tmp_path: Path, scenario: Choice, **settings: Any) -> dict[str, Any]:
    checksum = load_data(DIGITS, None, False)[1]
    problem = ProblemSpec(DIGITS, checksum, Choice("mlp", {"hidden": [16]}), scenario, {"epochs": 2}, 0)
    shop = Workshop(
        Settings("test", str(tmp_path), ("retain_accuracy", "forget_accuracy", "test_accuracy"), **settings)
    )
    row = run_trial(TrialSpec(problem, "spy", 1, {}, 0, FINAL), {}, shop)
    assert row["status"] == "ok", row["reason"]
    return row


def test_each_request_starts_from_what_the_one_before_left(tmp_path: Path, spy: list[dict[str, Any]]) -> None:
    row = trial(tmp_path, Choice("repeated", {"requests": 3, "fraction": 0.05}))
    assert len(spy) == 3
    shown: set[int] = set()
    for number, given in enumerate(spy):
        torch.testing.assert_close(given["bias"], spy[0]["bias"] + number)
        assert not given["forget"] & shown
        shown |= given["forget"]
        assert given["retain"] == set(range(360)) - shown
    assert len(shown) == row["forget_size"] == 54
    assert row["forward_passes"] == 54  # of all three requests
    assert len({given["drawn"] for given in spy}) == 3
    assert len({given["shared"] for given in spy}) == 3  # a value of the original is none of a later model
    spy.clear()
    again = trial(tmp_path, Choice("repeated", {"requests": 3, "fraction": 0.05}))
    assert [again[c] for c in ("forget_accuracy", "test_accuracy")] == [
        row[c] for c in ("forget_accuracy", "test_accuracy")
    ]
    assert len({given["drawn"] for given in spy}) == 3


def test_one_request_is_the_scenario_as_ever(tmp_path: Path, spy: list[dict[str, Any]]) -> None:
    trial(tmp_path, Choice("repeated", {"requests": 1, "fraction": 0.1}))
    (given,) = spy
    assert given["forget"] | given["retain"] == set(range(360))
    assert len(given["forget"]) == 36


def test_partial_knowledge_leaves_the_rest_among_the_data_to_retain(tmp_path: Path, spy: list[dict[str, Any]]) -> None:
    row = trial(tmp_path, Choice("partial", {"known": 0.25, "of": "label_noise", "fraction": 0.2}))
    (given,) = spy
    assert (len(given["forget"]), row["forget_size"]) == (18, 72)
    assert given["retain"] == set(range(360)) - given["forget"]


def test_own_trainings_are_skipped_where_requests_repeat(plan_of: Any, make_spec: Any) -> None:
    problem = {
        "dataset": "digits",
        "models": ["mlp"],
        "scenarios": [{"repeated": {"requests": 2}}, {"repeated": {"requests": 1}}],
    }
    plan = plan_of(make_spec(problems=[problem], methods=["sisa", "finetune"]))
    skips = {(line.cell.scenario.options["requests"], line.entry.name): line.skip for line in plan.lines}
    assert "later requests start from another model" in skips[2, "sisa"]
    assert [skips[1, "sisa"], skips[2, "finetune"]] == [None, None]


def test_a_backdoor_is_learnt_and_the_clean_and_the_retrained_model_have_none(tmp_path: Path) -> None:
    problem = {
        "dataset": "digits",
        "models": [{"name": "mlp", "hidden": [64]}],
        "scenarios": [{"backdoor": {"fraction": 0.2, "target": 3}}],
    }
    metrics = ["test_accuracy", "forget_accuracy", "retain_accuracy", "backdoor_success", "damage_recovery"]
    spec = {
        "name": "backdoor",
        "problems": [problem],
        "methods": ["original", {"name": "finetune", "hparams": {"epochs": 2, "lr": 0.01}}],
        "recipe": {"epochs": 20},
        "seeds": {"train": [0]},
        "metrics": metrics,
    }
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
    assert run(spec, options=options).exit_code == 0
    rows = load_trials(tmp_path / "out")
    references = rows[rows["phase"] == "reference"].set_index(["method", "variant", "unlearn_seed"])
    original, retrained, clean = (
        references.loc[k] for k in (("original", "", 0), ("retrain", "", 0), ("retrain", "clean", 0))
    )
    assert original["backdoor_success"] > 0.9
    assert retrained["backdoor_success"] < 0.2
    assert clean["backdoor_success"] < 0.2
    assert original["backdoor_success_gap"] == original["backdoor_success"] - retrained["backdoor_success"]
    assert original["test_accuracy"] > clean["test_accuracy"] - 0.05
    lines = load_leaderboard(tmp_path / "out").set_index(["method", "variant"])
    assert lines.loc[("retrain", "clean"), "kind"] == "reference"
    assert pd.isna(lines.loc[("retrain", "clean"), "rank_group"])


def test_damage_is_measured_against_the_clean_model(tmp_path: Path) -> None:
    problem = {
        "dataset": "digits",
        "models": [{"name": "mlp", "hidden": [64]}],
        "scenarios": [{"label_noise": {"fraction": 0.3}}, {"random": {"fraction": 0.3}}],
    }
    spec = {
        "name": "damage",
        "problems": [problem],
        "methods": ["original"],
        "recipe": {"epochs": 20},
        "seeds": {"train": [0]},
        "metrics": ["test_accuracy", "damage_recovery"],
    }
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
    run(spec, options=options)
    rows = load_trials(tmp_path / "out")
    noisy = rows[rows["scenario"] == "label_noise(0.3)"].set_index(["method", "variant", "unlearn_seed"])
    test = noisy["test_accuracy"]
    original, clean, retrained = (
        test.loc[k] for k in (("original", "", 0), ("retrain", "clean", 0), ("retrain", "", 0))
    )
    assert clean > original + 0.05
    assert noisy.loc[("original", "", 0), "damage_recovery"] == 0.0
    assert noisy.loc[("retrain", "clean", 0), "damage_recovery"] == 1.0
    expected = (retrained - original) / (clean - original)
    assert noisy.loc[("retrain", "", 0), "damage_recovery"] == pytest.approx(expected)
    others = rows[rows["scenario"] == "random(0.3)"]
    assert set(others["variant"]) == {""}
    assert others["missing"].str.contains("needs a clean model").all()

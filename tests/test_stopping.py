"""Stopping rules: what a spec may ask for, where a run is cut off, and what the row says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.data import Pixels, Split
from raybench.errors import UserError
from raybench.leaderboard.query import load_trials
from raybench.outputs import SplitOutputs
from raybench.run import Options, run
from raybench.stopping import check_stop, stopping_rule


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give that one key"),
        ({"unlearning_accuracy": 0.1, "speed": 2}, "give that one key"),
        ({"unlearning_acuracy": 0.1}, "did you mean unlearning_accuracy"),
        ({"unlearning_accuracy": 8.11}, r"a number in \(0, 1\]"),
        ({"unlearning_accuracy": 0}, r"a number in \(0, 1\]"),
        ({"unlearning_accuracy": True}, r"a number in \(0, 1\]"),
        ({"unlearning_accuracy": "gold"}, "or retrained"),
    ],
)
def test_rules_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_stop(given, "rewind")


class Fixed(nn.Module):
    """Predicts class 1 for the first ``wrong`` samples of a batch, and class 0 otherwise."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: Tensor) -> Tensor:
        one = (torch.arange(len(images)) < self.wrong).float()
        return torch.stack([1.0 - one, one], dim=1)


@pytest.mark.parametrize(("value", "least"), [(0.07, 7), (0.29, 29), (0.0751, 8), (1.0, 100), ("retrained", 12)])
def test_the_rule_is_met_from_the_target_on(value: float | str, least: int) -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    pixels = Pixels(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    split = Split(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(100), pixels)
    golden = SplitOutputs(Fixed(12)(torch.zeros(100)), labels)
    met = stopping_rule({"unlearning_accuracy": value}, split, lambda: golden)
    assert met(Fixed(least))
    assert not met(Fixed(least - 1))


def ascent(stop: dict[str, Any] | None, variant: str) -> dict[str, Any]:
    item = {"name": "gradient_ascent", "variant": variant, "hparams": {"lr": 0.05, "epochs": 10}}
    return item if stop is None else item | {"stop": stop}


def test_a_run_is_cut_off_at_the_target_and_charged_for_looking(make_spec: Any, tmp_path: Path) -> None:
    methods = [
        ascent(None, "whole"),
        ascent({"unlearning_accuracy": 0.5}, "half"),
        ascent({"unlearning_accuracy": "retrained"}, "retrained"),
        {
            "name": "finetune",
            "variant": "never",
            "hparams": {"lr": 1e-5, "epochs": 2},
            "stop": {"unlearning_accuracy": 1},
        },
    ]
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
    spec = make_spec(methods=methods, recipe={"epochs": 30})
    assert run(spec, options=options).exit_code == 0
    trials = load_trials(tmp_path / "out")
    finals = trials[trials["phase"] == "final"].set_index("variant")
    assert finals["status"].eq("ok").all()
    assert finals["stop_reason"].fillna("").to_dict() == {
        "whole": "", "half": "target", "retrained": "target", "never": "max_steps"
    }  # fmt: skip
    forget_size = int(finals["forget_size"].iloc[0])
    assert finals.loc["half", "forget_accuracy"] <= 0.5 < finals.loc["never", "forget_accuracy"]
    # ten epochs would be 10 |D_f| backward passes; a stopped run has fewer, and one evaluation of D_f per epoch
    assert finals.loc["whole", "backward_passes"] == pytest.approx(10 * forget_size)
    for variant in ("half", "retrained"):
        epochs = finals.loc[variant, "backward_passes"] / forget_size
        assert epochs == pytest.approx(round(epochs))
        assert epochs < 10
        assert finals.loc[variant, "forward_passes"] == pytest.approx(2 * epochs * forget_size)
    assert finals.loc["whole", "forward_passes"] == pytest.approx(10 * forget_size)
    assert json.loads(finals.loc["half", "spec"])["stop"] == {"unlearning_accuracy": 0.5}
    assert "stop" not in json.loads(finals.loc["whole", "spec"])


def test_the_rule_is_in_the_id_of_trials_and_searches(make_spec: Any, plan_of: Any) -> None:
    def ids(stop: dict[str, Any] | None) -> tuple[str, str]:
        item: dict[str, Any] = {"name": "finetune"} if stop is None else {"name": "finetune", "stop": stop}
        plan = plan_of(make_spec(methods=[item]))
        search = plan.searches()[0]
        return search.id, plan.search_requests(search, {"lr": 0.01, "epochs": 1})[0].spec.trial_id

    found = [ids(None), ids({"unlearning_accuracy": 0.5}), ids({"unlearning_accuracy": "retrained"})]
    assert len({search for search, _ in found}) == len({trial for _, trial in found}) == 3


def test_specs_with_a_rule_survive_json(make_spec: Any, plan_of: Any) -> None:
    from raybench.spec import TrialSpec

    plan = plan_of(make_spec(methods=[{"name": "finetune", "stop": {"unlearning_accuracy": "retrained"}}]))
    spec = plan.search_requests(plan.searches()[0], {"lr": 0.01, "epochs": 1})[0].spec
    again = TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.trial_id == spec.trial_id


def test_a_reference_has_no_rule(make_spec: Any, plan_of: Any) -> None:
    with pytest.raises(UserError, match="retrain must stand alone, it is a reference, got stop"):
        plan_of(make_spec(methods=[{"name": "retrain", "stop": {"unlearning_accuracy": 0.5}}]))

"""``search: {samples: N}``: search trials look at a fixed, stratified part of each split, finals at all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import raybench as rb
from raybench.errors import UserError
from raybench.evaluation import outputs_of, part_of
from raybench.experiment import make_experiment
from raybench.problem import load_data, make_problem
from raybench.run import Options, run
from raybench.spec import Choice, ProblemSpec, TrialSpec

SPEC = {
    "name": "part",
    "problems": [
        {
            "dataset": "digits",
            "models": [{"name": "mlp", "hidden": [16]}],
            "scenarios": [{"class": {"classes": [0]}}],
            "recipe": {"epochs": 2},
        }
    ],
    "methods": ["finetune"],
    "seeds": {"train": [0]},
    "search": {"trials": 2, "round_size": 2, "samples": 200},
}


def problem_spec() -> ProblemSpec:
    data = Choice("digits")
    checksum = load_data(data, None, False)[1]
    return ProblemSpec(data, checksum, Choice("mlp", {"hidden": [16]}), Choice("class", {"classes": [0]}), {}, 0)


def test_part_is_stratified_fixed_and_never_without_a_class() -> None:
    spec = problem_spec()
    raw = load_data(spec.dataset, None, False)[0]
    one, other = (make_problem(spec, raw, torch.device("cpu")) for _ in range(2))
    part = one.part(200)
    assert "retain" in part
    assert "forget" not in part  # 143 samples: all of them
    assert all(torch.equal(at, other.part(200)[name]) for name, at in part.items())
    whole, some = (np.bincount(t.numpy(), minlength=10) for t in (one.splits["retain"].targets,) * 2)
    some = np.bincount(one.splits["retain"].subset(part["retain"]).targets.numpy(), minlength=10)
    assert some.sum() == 200
    assert np.abs(some - 200 * whole / whole.sum()).max() < 1
    assert set(np.flatnonzero(np.bincount(one.splits["retain"].subset(one.part(3)["retain"]).targets))) == set(
        range(1, 10)
    )


def test_part_of_outputs_is_what_the_model_says_of_the_part() -> None:
    spec = problem_spec()
    problem = make_problem(spec, load_data(spec.dataset, None, False)[0], torch.device("cpu"))
    model, positions = problem.build(), problem.part(200)
    found = part_of(outputs_of(model, problem.splits, ("retain", "forget")), positions)
    splits = {"retain": problem.splits["retain"].subset(positions["retain"]), "forget": problem.splits["forget"]}
    expected = outputs_of(model, splits, ("retain", "forget"))
    for name in expected:
        torch.testing.assert_close(found[name].logits, expected[name].logits)
        assert torch.equal(found[name].labels, expected[name].labels)


def test_a_search_looks_at_the_part_and_finals_at_everything(tmp_path: Path) -> None:
    options = [
        Options(results=str(tmp_path / name), store=str(tmp_path / "store"), serial=True, quiet=True)
        for name in ("part", "all")
    ]
    whole = {**SPEC, "search": {k: v for k, v in SPEC["search"].items() if k != "samples"}}
    for spec, option in zip((SPEC, whole), options, strict=True):
        assert run(spec, options=option).exit_code == 0
    trials = [rb.load_trials(option.results).set_index("trial_id") for option in options]
    search = [rows[rows["phase"] == "search"] for rows in trials]
    assert not set(search[0].index) & set(search[1].index)
    assert all(json.loads(spec)["samples"] == 200 for spec in search[0]["spec"])
    assert set(search[0]["retain_accuracy"] * 200) == {round(v * 200) for v in search[0]["retain_accuracy"]}
    # The same setting opens both searches; of D_f, which is smaller than the part, both see all.
    first = [rows[rows["hparams"] == search[0]["hparams"].iloc[0]].iloc[0] for rows in search]
    assert first[0]["forget_accuracy"] == first[1]["forget_accuracy"]
    assert first[0]["retain_accuracy"] != first[1]["retain_accuracy"]
    assert first[0]["retain_accuracy"] == pytest.approx(first[1]["retain_accuracy"], abs=0.1)
    finals = trials[0][trials[0]["phase"] == "final"]
    assert all("samples" not in json.loads(spec) for spec in finals["spec"])
    assert (finals["retain_accuracy"] * 200 % 1 > 0).all()  # not of 200 samples


def test_ids_without_a_part_are_as_before() -> None:
    plain = TrialSpec(problem_spec(), "finetune", 1, {}, 0, "search")
    assert "samples" not in plain.to_dict()
    assert TrialSpec.from_dict(plain.to_dict()) == plain
    part = TrialSpec(problem_spec(), "finetune", 1, {}, 0, "search", samples=300)
    assert TrialSpec.from_dict(part.to_dict()) == part
    assert part.trial_id != plain.trial_id


def test_too_small_a_part_is_refused() -> None:
    with pytest.raises(UserError, match="samples"):
        make_experiment({**SPEC, "search": {"samples": 10}})

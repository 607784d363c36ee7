"""Specs as files: where they are found and how ``--set`` changes them (what is refused: tests/test_cli.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench.errors import UserError
from raybench.experiment import make_experiment
from raybench.spec_file import apply_settings, parse_spec, read_spec, shipped_specs


def test_shipped_specs_are_valid() -> None:
    assert "quickstart" in shipped_specs()
    for name in shipped_specs():
        assert make_experiment(read_spec(name)).name == name


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_file_by_its_path(tmp_path: Path, make_spec: Any, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text(yaml.safe_dump(make_spec(description="Grüße")), encoding="utf-8")
    assert read_spec(str(path)) == make_spec(description="Grüße")


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("search.trials=4", ("search", "trials"), 4),
        ("search.select=[distance, knee]", ("search", "select"), ["distance", "knee"]),
        ("recipe.lr=1e-3", ("recipe", "lr"), "1e-3"),  # YAML 1.1: the recipe turns it into a number
        ("gold_seeds=3", ("gold_seeds",), 3),
        ("description=a=b", ("description",), "a=b"),
        ("description=", ("description",), None),
        ("metrics=[retain_accuracy]", ("metrics",), ["retain_accuracy"]),
        ("methods.1.hparams.lr=0.5", ("methods", 1, "hparams", "lr"), 0.5),
        ("methods.gradient_ascent.hparams.lr=0.5", ("methods", 1, "hparams", "lr"), 0.5),
        ("methods.plain.hparams.lr=0.5", ("methods", 2, "hparams", "lr"), 0.5),
        ("methods.0=deepclean", ("methods", 0), "deepclean"),
        ("problems.0.models.0.hidden=[4, 4]", ("problems", 0, "models", 0, "hidden"), [4, 4]),
        ("seeds.train.0=5", ("seeds", "train", 0), 5),
        ("resources.gpu=0.25", ("resources", "gpu"), 0.25),
    ],
)
def test_set_changes_one_place(make_spec: Any, setting: str, path: tuple[Any, ...], value: Any) -> None:
    raw = make_spec()
    raw["methods"].append("plain")
    before = json.dumps(raw)
    node: Any = apply_settings(raw, [setting])
    for key in path:
        node = node[key]
    assert node == value
    assert json.dumps(raw) == before


def test_settings_apply_in_order(make_spec: Any) -> None:
    found = apply_settings(make_spec(), ["search.trials=4", "search={}", "search.round_size=2"])
    assert found["search"] == {"round_size": 2}


def test_defaults_and_short_forms_of_a_spec(make_spec: Any) -> None:
    spec = parse_spec(make_spec(methods=["finetune", {"name": "mnemonic", "training": {"t_mix": 0.5}}]))
    assert spec.methods[0].name == "finetune"
    assert spec.methods[1].training == [{"t_mix": 0.5}]
    assert spec.search.select == ["distance"]
    assert parse_spec(make_spec(search={"select": "knee"})).search.select == ["knee"]
    assert spec.gold_seeds == 2
    assert spec.threads == 1
    assert spec.seeds.unlearn == [0]


def test_merge_keys_are_no_repeats(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {lr: 1, epochs: 2}\nrecipe: {<<: *b, lr: 3}\n")
    assert read_spec(str(path))["recipe"] == {"lr": 3, "epochs": 2}


def test_first_problem_is_told_before_its_consequences(make_spec: Any) -> None:
    spec = make_spec(zzz=1)
    spec["methds"] = spec.pop("methods")
    with pytest.raises(UserError, match=r"'(zzz|methds)'"):
        parse_spec(spec)

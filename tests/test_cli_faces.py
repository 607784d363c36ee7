"""Faces of the command line: help, version, lists, formats of the leaderboard, an interrupt."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

import raybench
from tests.commands import assert_refused, python

PROBE = """
import sys, time
start = time.perf_counter()
from raybench.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
seconds = time.perf_counter() - start
print(seconds, *[m for m in ("torch", "ray", "optuna", "pandas", "numpy") if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], []])
def test_help_is_quick_and_needs_neither_torch_nor_ray(arguments: list[str]) -> None:
    found = [python("-c", PROBE, *arguments).stderr.split() for _ in range(2)]
    assert all(heavy == [] for _, *heavy in found)
    assert min(float(seconds) for seconds, *_ in found) < 0.5


def test_help_of_every_command(cli: Any) -> None:
    said = cli("--help")
    assert said.code == 0
    for command in ("run", "plan", "leaderboard", "retry", "list", "doctor"):
        assert command in said.out
        assert cli(command, "--help").code == 0


def test_version_and_no_command(cli: Any) -> None:
    assert cli("--version").out.strip() == raybench.__version__
    said = cli()
    assert said.code == 2
    assert "usage: raybench" in said.out


@pytest.mark.parametrize("kind", ["methods", "models", "datasets", "scenarios", "metrics", "specs"])
def test_list_as_json_is_a_list_of_objects_with_a_name(cli: Any, kind: str) -> None:
    said = cli("list", kind, "--format", "json")
    found = json.loads(said.out)
    names = [record["name"] for record in found]
    assert said.code == 0
    assert names == sorted(set(names))
    assert names
    assert all(name in cli("list", kind).out for name in names)


def test_formats_of_the_leaderboard(cli: Any, make_spec: Any) -> None:
    spec = make_spec(methods=[{"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}}], gold_seeds=1)
    run = cli("run", "{spec}", "--serial", "--results", "out", spec=spec)
    assert run.code == 0, run
    assert run.out.splitlines()[-1].startswith("leaderboard: ")
    assert "finetune" in run.out
    table = {form: cli("leaderboard", "out", "--format", form).out for form in ("table", "csv", "markdown", "latex")}
    assert table["table"].strip() in run.out
    assert table["csv"].startswith("dataset,model,scenario,method,variant")
    assert "| finetune" in table["markdown"]
    assert "\\toprule" in table["latex"]
    records = json.loads(cli("leaderboard", "out", "--format", "json").out)
    assert {record["method"] for record in records} == {"original", "retrain", "finetune"}
    assert "finetune" in cli("leaderboard", "out", "--model", "mlp(hidden=8)", "--pareto", "--by", "scenario").out
    assert_refused(cli("leaderboard", "out", "--model", "mlp(hidden=9)"), "did you mean mlp(hidden=8)?")


def test_interrupt_says_that_the_command_goes_on(cli: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("raybench.run"), "prepare", interrupt)
    said = cli("run", "{spec}", "--serial", spec=make_spec())
    assert said.code == 130
    lost = "no finished row is lost, this goes on from here: raybench run spec.yaml --serial"
    assert said.err == f"raybench: interrupted; {lost}\n"

"""Shared by all tests: one thread per process (toys are too small for more), tiny specs, and the command line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

torch.set_num_threads(1)


class Said(NamedTuple):
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]
MakeSpec = Callable[..., dict[str, Any]]


@pytest.fixture
def make_spec() -> MakeSpec:
    """A spec that runs in a second: two searched methods on 300 digits; keywords replace top-level keys."""

    def make(**changes: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": "tiny",
            "problems": [
                {
                    "dataset": {"name": "digits", "train_size": 300},
                    "models": [{"name": "mlp", "hidden": [8]}],
                    "scenarios": [{"name": "class", "classes": [0]}],
                }
            ],
            "methods": [
                {"name": "finetune", "space": {"epochs": {"low": 1, "high": 2}}},
                {"name": "gradient_ascent", "space": {"epochs": {"low": 1, "high": 2}}},
            ],
            "recipe": {"epochs": 3},
            "seeds": {"train": [0]},
            "search": {"trials": 3, "round_size": 2},
        }
        return spec | changes

    return make


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line in this process, in ``tmp_path``, with a store of its own. ``spec=`` is written to
    spec.yaml first, which ``{spec}`` in an argument stands for."""
    from raybench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAYBENCH_DATA", raising=False)

    def call(*arguments: str, spec: dict[str, Any] | None = None) -> Said:
        if spec is not None:
            (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([argument.replace("{spec}", "spec.yaml") for argument in arguments])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        return Said(code, out.getvalue(), err.getvalue())

    return call

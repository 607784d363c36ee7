"""Shared by all tests: one thread per process (toys are too small for more), tiny specs, and the command line."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
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
            "metrics": ["retain_accuracy", "forget_accuracy", "test_accuracy"],
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


@pytest.fixture
def plan_of() -> Callable[..., Any]:
    """A plan of a spec on made-up data: no files, no training."""
    from raybench.experiment import make_experiment
    from raybench.plan import DataFacts, Plan

    def make(spec: dict[str, Any], checksum: str = "c0", device_types: Sequence[str] = ("cpu",)) -> Plan:
        experiment = make_experiment(spec)
        labels = {cell.dataset.label for cell in experiment.cells}
        return Plan(experiment, {label: DataFacts(checksum, 10, (1, 28, 28)) for label in labels}, device_types)

    return make


@pytest.fixture
def fake_row() -> Callable[..., dict[str, Any]]:
    """The row that a request could leave: its objectives are a smooth function of the setting, or it failed."""

    def make(request: Any, status: str = "ok") -> dict[str, Any]:
        spec = request.spec
        lr = float(spec.hparams.get("lr", 0.01))
        epochs = float(spec.hparams.get("epochs", 1))
        return {
            "trial_id": spec.trial_id,
            "status": status,
            "phase": spec.phase,
            "dataset": spec.problem.dataset.label,
            "model": spec.problem.model.label,
            "scenario": spec.problem.scenario.label,
            "method": spec.method,
            "train_seed": spec.problem.train_seed,
            "unlearn_seed": spec.unlearn_seed,
            "unlearn_s": 1.0,
            "retrain_s": 10.0,
            "distance_validation": abs(math.log10(lr) + 2.5) / 10 if status == "ok" else None,
            "retrain_share": epochs / 30 if status == "ok" else None,
        }

    return make


FLAKY = '''
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution

from raybench.registry import METHODS
from raybench.space import scientific


@dataclass(frozen=True)
class FlakyHparams:
    strength: Annotated[float, scientific(FloatDistribution(0.0, 1.0))] = 0.5
    """How much the weights shrink."""


@METHODS.register("flaky", hparams=FlakyHparams)
def flaky(task, hp):
    """Shrinks the weights; raises as long as the file FLAKY_FLAG says so: never, at the default, or always."""
    flag = Path(os.environ["FLAKY_FLAG"]).read_text()
    if flag == "always" or (flag == "default" and hp.strength == 0.5):
        raise RuntimeError("no luck\\ntoday")
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.mul_(1 - 0.1 * hp.strength)
    return task.model
'''


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """A third party's method ``flaky`` in the plug-in module ``flaky_plugin``; call it to say when it raises."""
    from raybench.registry import METHODS

    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "flaky_plugin.py").write_text(FLAKY)
    flag = tmp_path / "flag"
    flag.write_text("never")
    monkeypatch.setenv("FLAKY_FLAG", str(flag))
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    yield flag.write_text
    METHODS._entries.pop("flaky", None)
    sys.modules.pop("flaky_plugin", None)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server of this test session."""
    from tests.s3 import serve  # imports moto and boto3: a second

    yield from serve()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The S3 server with nothing in it but the bucket ``bench``, and credentials for it in the environment."""
    from tests.s3 import S3

    server = S3(s3_endpoint, monkeypatch)
    server.client.create_bucket(Bucket="bench")
    yield server
    server.check_keys(False)
    server.reset()

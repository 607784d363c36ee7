"""One local Ray per test session, with its own home folder: tests never touch a person's ~/.ray."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from raybench.board import Board
from raybench.cluster.scheduler import RayExecutor
from raybench.cluster.session import Session
from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore
from raybench.ledger import read_ledger
from raybench.run import Options, already, prepare
from raybench.serial import SerialExecutor


@pytest.fixture(scope="session")
def ray_home(tmp_path_factory):
    """HOME and plug-in folder for every process that Ray starts from here."""
    home = tmp_path_factory.mktemp("home")
    plugins = str(Path(__file__).parent / "plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [plugins, os.environ.get("PYTHONPATH")])))
        patch.syspath_prepend(plugins)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield home


@pytest.fixture(scope="session")
def local_ray(ray_home):
    """Eight pretended CPUs and two pretended GPUs; tests cap the slots."""
    session = Session.start(slots=8, gpus=2)
    yield session
    session.close()


@pytest.fixture
def capped(local_ray):
    """Sessions of the one Ray with fewer slots, each with a namespace of its own."""
    return lambda slots=None: Session(local=True, cap=slots, mine=False)


SPEC = {
    "name": "tiny",
    "problems": [{"dataset": "digits", "models": ["mlp"], "scenarios": [{"name": "class", "classes": [0]}]}],
    "recipe": {"epochs": 3},
    "methods": [{"name": "finetune", "space": {"epochs": {"low": 1, "high": 3}}}, "gradient_ascent", "deepclean"],
    "seeds": {"train": [0]},
    "gold_seeds": 1,
    "search": {"trials": 4, "round_size": 2},
    "metrics": ["retain_accuracy", "forget_accuracy"],
}


@pytest.fixture
def spec():
    """The tiny experiment with changes: ``spec(methods=[...])``."""
    return lambda **changes: {**SPEC, **changes}


@dataclass
class Driven:
    """What a helper run left: the store, and the rows in the order in which they came to the driver."""

    store: ResultStore
    told: list[dict] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Columns that two runs must share, by trial id."""
        frame = self.store.trials()
        return frame[comparable(self.store.schema())].sort_values("trial_id", ignore_index=True)

    def ids(self, **wanted) -> list[str]:
        frame = self.store.trials(attempts=True)
        for name, value in wanted.items():
            frame = frame[frame[name] == value]
        return sorted(frame["trial_id"])


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    """Reference models, trained once for all tests that are not about training them."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def drive(tmp_path, shared_store):
    """The stages of ``raybench.run`` on an executor that the test makes."""

    def drive(raw, make_executor, results="results", told=lambda row: None, device_types=None, store=shared_store):
        raw = {**raw, "plugins": [*raw.get("plugins", ()), "cluster_fakes"]} if uses_fakes(raw) else raw
        options = Options(results=str(tmp_path / results), store=str(store or tmp_path / "store"))
        prepared = prepare(raw, options, device_types)
        driven = Driven(ResultStore.open_for_writing(prepared.results, prepared.metrics))
        plan, ledger = prepared.plan, read_ledger(driven.store)

        def finished(row):
            ledger.rows[row["trial_id"]] = row
            driven.told.append(row)
            told(row)

        executor = make_executor(prepared, driven.store)
        try:
            executor.run_fixed(ledger.missing(plan.references()), finished)
            board = Board(plan, ledger, executor.ask, executor.record)
            executor.run_searches(board, finished)
            executor.run_fixed(ledger.missing(plan.finals(ledger)), finished)
            executor.run_fixed(ledger.missing(plan.oracles(ledger)), finished)
            measured = already(driven.store, prepared)
            executor.run_fixed(plan.measurements(ledger, measured), lambda receipt: None)
        finally:
            executor.close()
        return driven

    return drive


def uses_fakes(raw) -> bool:
    names = [m if isinstance(m, str) else m["name"] for m in raw["methods"]]
    return any(name in ("sleeper", "killer", "raiser", "hungry", "napper", "hanger") for name in names)


@pytest.fixture
def serial():
    """A maker of executors without Ray."""
    return lambda prepared, store: SerialExecutor(store, prepared.settings)


@pytest.fixture
def on():
    """``on(session)``: a maker of executors on a Ray session."""

    def on(session, **changes):
        return lambda prepared, store: make(session, prepared, **changes)

    def make(session, prepared, **changes):
        return RayExecutor(
            results=str(prepared.results),
            metrics=prepared.metrics,
            settings=prepared.settings,
            resources=changes.get("resources", prepared.experiment.resources),
            session=session,
            exclusive=changes.get("exclusive", False),
            device_types=prepared.plan.device_types,
            measured=prepared.experiment.measured,
        )

    return on

"""What running a trial costs beside the trial itself: empty trials through Ray Tune and through the pool of actors,
the first trial of a cold ``raybench run``, and the commands that only read.

    python jobs/benchmarks/orchestration.py [--slots 2] [--trials 400] [--repeats 3] [--only tune pool cold]

Searches run through Ray Tune and its OptunaSearch, fixed work through the pool; there is no third path. A trial here
does nothing: all else is what ``raybench run`` does, the board with its rounds, Tune's lanes, the pool, requests as
they travel, and (``durable``) a row of the full schema that the aggregator has on disk before it is answered. The best
of the repeats is printed beside the floor, with the machine's load; every repeat is a row of
``results/performance/orchestration.parquet``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rows import add_rows

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "performance" / "orchestration.parquet"
SHIPPED = ROOT / "results" / "quickstart"
# What is measured -> (floor, whether more is better, unit)
FLOORS = {
    "tune": (30.0, True, "trials/s"),
    "tune durable": (10.0, True, "trials/s"),
    "pool": (200.0, True, "trials/s"),
    "pool durable": (60.0, True, "trials/s"),
    "first trial of a cold run": (20.0, False, "s"),
    "raybench --help": (0.5, False, "s"),
    "raybench leaderboard": (2.0, False, "s"),
}
SPEC = """
name: cold
problems:
  - {dataset: digits, models: [{name: mlp, hidden: [8]}], scenarios: [{class: {classes: [0]}}], recipe: {epochs: 1}}
methods: [finetune]
seeds: {train: [0]}
search: {trials: 1, round_size: 1}
"""


def empty_runner(durable: bool) -> type[Any]:
    """A ``TrialRunner`` whose trials do nothing. ``durable``: they leave a row of the full schema through the
    aggregator."""
    from raybench.cluster.aggregator import wait_for
    from raybench.cluster.trial_actor import Outcome, TrialRunner
    from raybench.ledger import Request

    class EmptyRunner(TrialRunner):
        def run(self, request: Mapping[str, Any]) -> Outcome:
            spec = Request.from_dict(request).spec
            row = empty_row(spec)
            if durable:
                wait_for(self._kit.aggregator.append.remote([row]))
            return Outcome(row)

    return EmptyRunner


def empty_row(spec: Any) -> dict[str, Any]:
    """What a search trial leaves: the identity of its spec, and numbers that its hyperparameters decide."""
    from raybench.metrics import DEFAULT_METRICS
    from raybench.seeding import derive_seed, to_json

    draw = derive_seed(spec.hparams) / 2**63
    return {
        "trial_id": spec.trial_id, "attempt": 0, "experiment": "orchestration", "protocol": spec.protocol,
        "dataset": spec.problem.dataset.label, "model": spec.problem.model.label,
        "scenario": spec.problem.scenario.label, "method": spec.method, "method_version": spec.method_version,
        "variant": spec.variant, "phase": spec.phase, "train_seed": spec.problem.train_seed,
        "unlearn_seed": spec.unlearn_seed, "hparams": to_json(spec.hparams), "spec": to_json(spec.to_dict()),
        "status": "ok", "unlearn_s": draw, "retrain_share": 1.0 - draw, "retrain_s": 1.0,
        **dict.fromkeys(DEFAULT_METRICS, draw),
    }  # fmt: skip


def plan_of(trials: int, searches: int = 10) -> Any:
    """Searches of one class each, with equally many trials in rounds of ten."""
    from raybench.experiment import make_experiment
    from raybench.plan import DataFacts, Plan

    problem = {
        "dataset": "digits",
        "models": [{"name": "mlp", "hidden": [8]}],
        "scenarios": [{"class": {"classes": [c]}} for c in range(searches)],
    }
    spec = {
        "name": "orchestration",
        "problems": [problem],
        "methods": ["finetune"],
        "search": {"trials": trials // searches, "round_size": 10},
    }
    experiment = make_experiment(spec)
    return Plan(experiment, {"digits": DataFacts("none", 10, (1, 8, 8))}, ["cpu"])


def kit_of(session: Any, folder: str) -> tuple[Any, list[Any]]:
    """A worker's kit with the real service actors."""
    from raybench.cluster.aggregator import start_aggregator, wait_for
    from raybench.cluster.lease import start_coordinator
    from raybench.cluster.trial_actor import Kit
    from raybench.metrics import DEFAULT_METRICS
    from raybench.run import metric_infos
    from raybench.workshop import Settings

    actors = [
        start_aggregator(folder, metric_infos(DEFAULT_METRICS), session.namespace, session.node_id),
        start_coordinator(session.namespace, session.node_id),
    ]
    wait_for(actors[0].append.remote([]))
    return Kit(Settings("orchestration", folder, DEFAULT_METRICS), *actors), actors


def rate(times: list[float], slots: int) -> float:
    """Rows per second once every slot has had its first: the start of processes is not in it."""
    times = sorted(times)[slots:]
    return (len(times) - 1) / (times[-1] - times[0])


def through_tune(session: Any, slots: int, trials: int, durable: bool) -> float:
    """Empty search trials a second."""
    import ray
    from ray import tune

    from raybench.board import Board
    from raybench.cluster.optuna_ask import ask_optuna_search
    from raybench.cluster.search import BoardSearcher, SearchTrial, run_board
    from raybench.ledger import Ledger

    class EmptyTrial(SearchTrial):
        def setup(self, config: Mapping[str, Any], kit: Any) -> None:
            super().setup(config, kit)
            self._runner = empty_runner(durable)(kit)

    assert issubclass(EmptyTrial, tune.Trainable)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        kit, actors = kit_of(session, folder)
        board = Board(plan_of(trials), Ledger(), ask_optuna_search, lambda records: None)
        searcher = BoardSearcher(board, lambda row: times.append(time.perf_counter()), fail=unwanted, find=unfound)
        run_board(searcher, kit, {"cpu": 1.0, "gpu": 0.0}, slots, trainable=EmptyTrial)
        for actor in actors:
            ray.kill(actor)
    return rate(times, slots)


def through_pool(session: Any, slots: int, trials: int, durable: bool) -> float:
    """Empty fixed trials a second."""
    import ray

    from raybench.cluster.pool import Place, Pool
    from raybench.cluster.trial_actor import TrialActor
    from raybench.ledger import Request
    from raybench.seeding import canonical

    class EmptyActor(TrialActor):
        def __init__(self, kit: Any) -> None:
            self._runner = empty_runner(durable)(kit)

    plan = plan_of(trials)
    one = plan.search_requests(plan.searches()[0], {"lr": 0.01, "epochs": 1})[0]
    requests = [
        Request(
            dataclasses.replace(one.spec, hparams=canonical({**one.spec.hparams, "lr": 1e-6 * (i + 1)})), one.context
        )
        for i in range(trials)
    ]
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        kit, actors = kit_of(session, folder)
        pool = Pool(kit, [Place(1.0, 0.0)] * slots, actor=EmptyActor)
        pool.run(requests, lambda row: times.append(time.perf_counter()), unwanted)
        pool.close()
        for actor in actors:
            ray.kill(actor)
    return rate(times, slots)


def unwanted(request: Any, reason: str) -> Any:
    """An empty trial cannot fail."""
    raise RuntimeError(reason)


def unfound(request: Any) -> None:
    """No worker of an empty trial dies."""


def first_trial(slots: int) -> float:
    """Seconds from the command to the first trial that ended, in a process and a Ray of its own, store empty."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cold.yaml").write_text(SPEC)
        command = [sys.executable, "-m", "raybench", "run", "cold.yaml", "--results", "out", "--store", "store"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, "--slots", str(slots), "--verbose", "--yes"],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if "(trial " in line:
                    seconds = time.perf_counter() - started
                    process.stderr.read()
                    return seconds
    raise RuntimeError(f"the run ended without a trial: {''.join(told)}")


def command(*arguments: str) -> float:
    """Wall seconds of a ``raybench`` command in a process of its own, the interpreter's start included."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "raybench", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return time.perf_counter() - started


def process_seconds() -> float:
    """Of this process and of the commands that it ran and that have ended; not of Ray's daemons and workers."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(given: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """(what, number, how many trials it is of), repeat by repeat."""
    for _ in range(given.repeats):
        if "cold" in given.only:
            yield "raybench --help", command("--help"), 1
            yield "raybench leaderboard", command("leaderboard", str(SHIPPED)), 1
            yield "first trial of a cold run", first_trial(given.slots), 1
    if {"tune", "pool"} & set(given.only):
        from raybench.cluster.session import Session

        session = Session.start(slots=given.slots)
        for _ in range(given.repeats):
            if "pool" in given.only:
                yield "pool", through_pool(session, given.slots, 5 * given.trials, False), 5 * given.trials
                yield "pool durable", through_pool(session, given.slots, given.trials, True), given.trials
            if "tune" in given.only:
                yield "tune", through_tune(session, given.slots, given.trials, False), given.trials
                yield "tune durable", through_tune(session, given.slots, given.trials, True), given.trials
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("tune", "pool", "cold"), default=["tune", "pool", "cold"])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    from raybench.places import git_commit

    rows: list[dict[str, Any]] = []
    cpu = process_seconds()
    for what, value, trials in measure(given):
        floor, more, unit = FLOORS[what]
        rows.append(
            {
                "what": what, "value": value, "unit": unit, "floor": floor, "more_is_better": more, "trials": trials,
                "slots": given.slots, "driver_process_s": process_seconds() - cpu,
                "cores": os.cpu_count(), "machine_load": os.getloadavg()[0],
                "git_commit": git_commit(), "measured_at": datetime.datetime.now(datetime.UTC),
            }
        )  # fmt: skip
        add_rows(given.out, [rows[-1]])
        took = f"driver {rows[-1]['driver_process_s']:.3g} process s, load {rows[-1]['machine_load']:.1f}"
        print(f"{what}: {value:.3g} {unit} (floor {floor:g}, {took})", flush=True)
        cpu = process_seconds()
    found = pd.DataFrame(rows)
    best = [
        group.sort_values("value", ascending=not group["more_is_better"].iloc[0]).iloc[0]
        for _, group in found.groupby("what", sort=False)
    ]
    print("\nbest of each")
    print(
        pd.DataFrame(best)[["what", "floor", "value", "unit", "driver_process_s", "machine_load"]].to_string(
            index=False
        )
    )


if __name__ == "__main__":
    main()

"""How plan time, memory and trials per second grow with the cells of an experiment and with slots.

    python jobs/benchmarks/growth.py [--cells 100 1000 10000 100000] [--slots 1 2 4 8 16 32] [--trials 400]

A cell is a trial that the plan asks for: half of them are settings of searches, eight a search, the others finals and
references. ``cells``: the driver alone, in a process for each size: the plan is made from its spec, every search is
asked round by round by Ray Tune's OptunaSearch and told made-up rows, finals are selected and what is missing is
counted; the ledger holds the columns that a run looks at. ``slots``: searches through Ray Tune with workers that do
nothing and import neither torch nor raybench, so that 32 of them fit on one machine. Prints two tables and adds a row
for each line to ``results/performance/growth.parquet``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from rows import add_rows

from raybench.board import Board
from raybench.cluster.optuna_ask import ask_optuna_search
from raybench.experiment import make_experiment
from raybench.ledger import Ledger, Request
from raybench.places import git_commit
from raybench.plan import DataFacts, Plan

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "performance" / "growth.parquet"
METHODS = ["finetune", "gradient_ascent", "ssd", "salun", "neggrad_plus", "random_label", "scrub", "l1_sparse"]
SETTINGS, SEEDS, GOLDS = 8, 5, 2
PER_PROBLEM = len(METHODS) * (SETTINGS + SEEDS) + SEEDS * (1 + GOLDS)


def make_plan(problems: int, methods: list[str], settings: int, started: float) -> tuple[Plan, dict[str, float]]:
    """A plan of so many models of one scenario, and the seconds of its making."""
    spec = {
        "name": "growth",
        "problems": [
            {
                "dataset": "digits",
                "models": [{"name": "mlp", "hidden": [8 + width]} for width in range(problems)],
                "scenarios": [{"class": {"classes": [0]}}],
            }
        ],
        "methods": methods,
        "seeds": {"train": list(range(SEEDS))},
        "gold_seeds": GOLDS,
        "search": {"trials": settings, "round_size": 4},
    }
    experiment = make_experiment(spec)
    read = time.perf_counter()
    facts = {label: DataFacts("none", 10, (1, 8, 8)) for label in {cell.dataset.label for cell in experiment.cells}}
    plan = Plan(experiment, facts, ["cpu"])
    return plan, {"spec_s": read - started, "plan_s": time.perf_counter() - started}


def made_up(request: Request) -> dict[str, Any]:
    """The columns of a row that the plan looks at (``raybench.ledger.NEEDED``)."""
    spec = request.spec
    draw = random.Random(spec.trial_id).random()
    return {
        "trial_id": spec.trial_id, "attempt": 0, "status": "ok", "reason": None, "phase": spec.phase,
        "dataset": spec.problem.dataset.label, "model": spec.problem.model.label,
        "scenario": spec.problem.scenario.label, "method": spec.method, "variant": spec.variant,
        "train_seed": spec.problem.train_seed, "unlearn_seed": spec.unlearn_seed, "unlearn_s": draw, "retrain_s": 1.0,
        "retrain_share": 1.0 - draw, "wall_s": draw, "missing": None, "distance_validation": draw,
        "retrained_free": None,
    }  # fmt: skip


def resident_mb() -> float:
    """Memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def grow_cells(cells: int) -> dict[str, Any]:
    """The driver's part of an experiment of about ``cells`` trials: seconds, and memory above that of the imports."""
    gc.collect()
    before, started = resident_mb(), time.perf_counter()
    cpu = time.process_time()
    plan, found = make_plan(max(1, round(cells / PER_PROBLEM)), METHODS, SETTINGS, started)
    ledger = Ledger()
    references = ledger.missing(plan.references())
    found["first_trial_s"] = time.perf_counter() - started
    ledger.rows.update((request.spec.trial_id, made_up(request)) for request in references)
    began, begun = time.perf_counter(), time.process_time()
    board = Board(plan, ledger, ask_optuna_search, lambda records: None)
    found["board_s"] = time.perf_counter() - began
    asked, asking = 0, time.process_time()
    while not board.done:
        request = board.next()
        if request is None:
            raise RuntimeError("the board waits for a trial that nobody runs")
        board.finished(made_up(request))
        asked += 1
    found["search_cpu_s"] = time.process_time() - begun
    found["search_trials_per_cpu_s"] = asked / (time.process_time() - asking)
    began = time.perf_counter()
    finals = ledger.missing(plan.finals(ledger))
    found["finals_s"] = time.perf_counter() - began
    ledger.rows.update((request.spec.trial_id, made_up(request)) for request in finals)
    found["memory_mb"] = resident_mb() - before
    began = time.perf_counter()  # what a second run of a finished experiment does
    again, _ = make_plan(max(1, round(cells / PER_PROBLEM)), METHODS, SETTINGS, began)
    if ledger.missing(again.references()) or ledger.missing(again.finals(ledger)):
        raise RuntimeError("a finished experiment must have nothing to run")
    again.wanted(ledger)
    found["again_s"] = time.perf_counter() - began
    total = len(references) + asked + len(finals)
    found["cpu_ms_per_trial"] = 1000.0 * (time.process_time() - cpu) / total
    return {"kind": "cells", "cells": total, "searches": len(board._searches), **found}


def grow_slots(slots: int, trials: int, session: Any) -> dict[str, Any]:
    """Empty search trials a second through Ray Tune; the board, rounds and lanes are the product's."""
    from ray import tune

    from raybench.cluster.search import BoardSearcher, run_board

    class Empty(tune.Trainable):
        """In place of ``SearchTrial``; travels by value."""

        def setup(self, config: dict[str, Any], kit: None) -> None:
            self.request = config["request"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.request = new_config["request"]
            return True

        def feed(self, request: dict[str, Any]) -> None:
            self.request = request

        def step(self) -> dict[str, Any]:
            return {"outcome": SimpleNamespace(row=self.request["context"]["row"], handed_back="", memory=False)}

    class Named(Board):
        """A board whose requests carry the rows that they will leave: the workers cannot compute trial ids."""

        def next(self) -> Any:
            request = super().next()
            if request is not None:
                request.context["row"] = made_up(request)
            return request

    searches = 20
    plan, _ = make_plan(searches, METHODS[:1], trials // searches, time.perf_counter())
    times: list[float] = []
    board = Named(plan, Ledger(), ask_optuna_search, lambda records: None)
    none: Any = None  # nothing fails, no worker dies
    searcher = BoardSearcher(board, lambda row: times.append(time.perf_counter()), fail=none, find=none)
    started, cpu = time.perf_counter(), time.process_time()
    run_board(searcher, None, {"cpu": 1.0}, slots, trainable=Empty)  # type: ignore[arg-type]
    cpu, times = time.process_time() - cpu, sorted(times)
    late = times[len(times) // 4 :]  # the start of processes is not in it
    return {
        "kind": "slots", "slots": slots, "trials": len(times), "trials_per_s": (len(late) - 1) / (late[-1] - late[0]),
        "first_row_s": times[0] - started, "cpu_ms_per_trial": 1000.0 * cpu / len(times), "memory_mb": resident_mb(),
    }  # fmt: skip


def in_own_process(cells: int) -> dict[str, Any]:
    """``grow_cells`` where no earlier size has left memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(cells)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--trials", type=int, default=400, help="of each number of slots")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(grow_cells(given.one)))
        return
    rows = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(
            row
            | {
                "cores": os.cpu_count(), "machine_load": os.getloadavg()[0], "git_commit": git_commit(),
                "measured_at": datetime.datetime.now(datetime.UTC),
            }
        )  # fmt: skip
        add_rows(given.out, [rows[-1]])
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)

    for cells in given.cells:
        keep(in_own_process(cells))
    for slots in given.slots:
        from raybench.cluster.session import Session

        session = Session.start(slots=slots)
        keep(grow_slots(slots, given.trials, session))
        session.close()
    found = pd.DataFrame(rows)
    hidden = ["git_commit", "measured_at", "cores", "kind"]
    for _, group in found.groupby("kind", sort=False):
        print("\n" + group.dropna(axis=1, how="all").drop(columns=hidden).to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()

"""How busy the search stage keeps its slots: Ray Tune, the board and its rounds, with trials that only sleep.

    python jobs/benchmarks/occupancy.py [--slots 32] [--trials 1000] [--searches 20] [--seconds 5 2] [--measured]

The workers import neither raybench nor torch, so that many of them fit on one machine; everything in the driver is
what ``raybench run`` uses. A trial takes a CPU and a quarter of a GPU, of which there are pretended ones, one for four
slots. Busy slot-seconds are counted from when every slot has run a trial (``occupancy``; ``occupancy_with_start`` has
the start of the workers in it), over the moments at which the driver holds trials that wait. With ``--measured`` the
trials of three methods take the eighth, the quarter and the half of a GPU that their footprints need, which the run has
to find out first; a slot then counts as a lane, and ``gpu_busy`` is the share of the GPUs that trials hold. Prints a
table and adds its rows to ``results/performance/occupancy.parquet``.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray import tune

from raybench.board import Board
from raybench.cluster.optuna_ask import ask_optuna_search
from raybench.cluster.packing import Packing
from raybench.cluster.search import BoardSearcher, run_board
from raybench.cluster.session import Session
from raybench.experiment import make_experiment
from raybench.footprint import Footprints
from raybench.lanes import Lanes
from raybench.ledger import Ledger, Request
from raybench.places import git_commit
from raybench.plan import DataFacts, Plan
from raybench.shares import Shares
from raybench.spec import TrialSpec

OUT = Path(__file__).parents[2] / "results" / "performance" / "occupancy.parquet"
EVERY_S = 0.05
SHARE = {"cpu": 1.0, "gpu": 0.25}
GIB = 2**30
DEVICE, CONTEXT = 16 * GIB, GIB // 4  # what the pretended GPUs have, and what CUDA itself takes of it
NEEDS = {"finetune": GIB, "gradient_ascent": 3 * GIB, "neggrad_plus": 6 * GIB}  # an eighth, a quarter, a half
WANTED = {5.0: 0.93, 2.0: 0.80}  # share of slot-seconds that must be busy, by the trials' seconds


class Sleeper(tune.Trainable):
    """In place of ``SearchTrial``: sleeps and leaves a row like a search trial's. Travels by value."""

    def setup(self, config: dict[str, Any], kit: float) -> None:
        self.request, self.seconds, self.share = config["request"], kit, config.get("gpu", 0.25)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.request = new_config["request"]
        return bool(new_config.get("gpu", self.share) == self.share)  # another share is another process

    def feed(self, request: dict[str, Any]) -> None:
        self.request = request

    def step(self) -> dict[str, Any]:
        began = time.time()
        time.sleep(self.seconds)
        spec = self.request["spec"]
        draw = random.Random(str(sorted(spec["hparams"].items())))
        row = {
            "trial_id": self.request["context"]["trial_id"],
            "status": "ok",
            "reason": None,
            "phase": "search",
            "unlearn_s": self.seconds,
            "distance_validation": draw.random(),
            "retrain_share": draw.random(),
            "began": began,
            "ended": time.time(),
            "gpu": str(ray.get_gpu_ids()[0]),
            "share": self.share,
            "torch": "torch" in sys.modules,
        }
        return {"outcome": SimpleNamespace(row=row, handed_back="", memory=False)}


class Watch(threading.Thread):
    """Samples what waits in the driver, and its memory."""

    def __init__(self, searcher: BoardSearcher, slots: int) -> None:
        super().__init__(daemon=True)
        self._searcher, self._slots, self._end = searcher, slots, threading.Event()
        self.samples: list[tuple[float, int, float]] = []

    def run(self) -> None:
        while not self._end.wait(EVERY_S):
            waiting = self._searcher.load(self._slots).waiting
            self.samples.append((time.time(), waiting, resident_mb()))

    def stop(self) -> np.ndarray[Any, Any]:
        self._end.set()
        self.join()
        return np.array(self.samples)


class Named(Board):
    """A board whose requests carry their trial id, because the workers cannot compute it."""

    def next(self) -> Any:
        request = super().next()
        if request is not None:
            request.context["trial_id"] = request.spec.trial_id  # type: ignore[index]
        return request

    def take(self, request: Request) -> None:
        request.context["trial_id"] = request.spec.trial_id  # type: ignore[index]
        super().take(request)


class Measuring(BoardSearcher):
    """Remembers of a trial what a worker on CUDA would have measured."""

    def __init__(self, footprints: Footprints, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._footprints = footprints
        self._specs: dict[str, TrialSpec] = {}

    def _hand_out(self, trial_id: str, lane: bool = False) -> dict[str, Any] | None:
        request = super()._hand_out(trial_id, lane)
        if request is not None:
            self._specs[trial_id] = self._running[trial_id].request.spec
        return request

    def took(self, trial_id: str, outcome: Any) -> dict[str, Any] | None:
        spec = self._specs[trial_id]
        self._footprints.note(spec, NEEDS[spec.method], CONTEXT)
        return super().took(trial_id, outcome)


def most_at_once(rows: list[Any], of: str = "") -> float:
    """The largest number of these trials that ran at one moment, or the sum of what each had ``of`` something."""
    began, ended = ([row[key] for row in rows] for key in ("began", "ended"))
    held = [row[of] if of else 1 for row in rows]
    return float(max(sum(h for b, e, h in zip(began, ended, held, strict=True) if b <= moment < e) for moment in began))


def held(rows: list[Any], moments: np.ndarray[Any, Any], of: str = "") -> np.ndarray[Any, Any]:
    """How many of these trials ran at each of the moments, or the sum of what each had ``of`` something."""
    total = np.zeros(len(moments))
    for row in rows:
        total[(moments >= row["began"]) & (moments < row["ended"])] += row[of] if of else 1
    return total


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_plan(searches: int, trials: int, methods: Sequence[str]) -> Plan:
    """As many searches (a class of one of several small models each, by each method) with equally many trials."""
    per_method = searches // len(methods)
    wide = math.ceil(per_method / 10)
    problems = {
        "dataset": "digits",
        "models": [{"name": "mlp", "hidden": [width]} for width in range(8, 8 + wide)],
        "scenarios": [{"class": {"classes": [c]}} for c in range(per_method // wide)],
    }
    spec = {
        "name": "occupancy",
        "problems": [problems],
        "methods": list(methods),
        "search": {"trials": trials // (per_method * len(methods)), "round_size": 10},
    }
    experiment = make_experiment(spec)
    facts = {cell.dataset.label: DataFacts("none", 10, (1, 8, 8)) for cell in experiment.cells}
    return Plan(experiment, facts, ["cpu"])


def measure(seconds: float, slots: int, searches: int, trials: int, store: str | None) -> dict[str, Any]:
    """One run; the row of the table. ``store``: where footprints are remembered, or None for a fixed share."""
    rows: list[Any] = []
    plan = make_plan(searches, trials, ["finetune"] if store is None else list(NEEDS))
    board = Named(plan, Ledger(), ask_optuna_search, lambda records: None)
    devices = math.ceil(slots * SHARE["gpu"])
    searcher: BoardSearcher
    if store is None:
        searcher = BoardSearcher(board, rows.append, fail=None, find=None)  # type: ignore[arg-type]  # nothing may fail
    else:
        footprints = Footprints(store)
        packing = Packing(Shares(1.0, footprints, DEVICE), Lanes(devices, slots))
        searcher = Measuring(footprints, board, rows.append, None, None, packing)
    watch = Watch(searcher, slots)
    started, cpu = time.time(), time.process_time()
    watch.start()
    run_board(searcher, seconds, SHARE, slots, trainable=Sleeper)  # type: ignore[arg-type]
    ended, cpu = time.time(), time.process_time() - cpu
    samples = watch.stop()
    busy, shares = held(rows, samples[:, 0]), held(rows, samples[:, 0], "share")
    at_once = int(busy.max())
    gpus = {gpu: [row for row in rows if row["gpu"] == gpu] for gpu in {row["gpu"] for row in rows}}
    full = samples[np.argmax(busy >= min(slots, at_once)), 0]  # every worker has been started by then
    waiting = samples[:, 1] > 0
    warm = waiting & (samples[:, 0] >= full)
    return {
        "trial_s": seconds,
        "slots": slots,
        "searches": len(board._searches),
        "trials": len(rows),
        "occupancy": float(busy[warm].mean() / slots),
        "occupancy_with_start": float(busy[waiting].mean() / slots),
        "most_at_once": at_once,
        "gpus": len(gpus),
        "most_on_a_gpu": max(most_at_once(mine) for mine in gpus.values()),
        "shares": "fixed" if store is None else "measured",
        "gpu_busy": float(shares[warm].mean() / devices),
        "most_of_a_gpu": max(most_at_once(mine, "share") for mine in gpus.values()),
        "start_s": float(full - started),
        "wall_s": ended - started,
        "driver_cpu_ms_per_trial": 1000.0 * cpu / len(rows),
        "ideal_s": len(rows) * seconds / slots,
        "driver_mb_when_full": float(samples[samples[:, 0] >= full][0, 2]),
        "driver_mb_at_end": float(samples[-1, 2]),
        "workers_with_torch": sum(row["torch"] for row in rows),
        "cores": os.cpu_count(),
        "machine_load": os.getloadavg()[0],
        "ray_version": ray.__version__,
        "git_commit": git_commit(),
        "measured_at": datetime.datetime.now(datetime.UTC),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 2.0])
    parser.add_argument("--measured", action="store_true", help="shares of the GPUs by measured footprints")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    session = Session.start(slots=arguments.slots, gpus=math.ceil(arguments.slots * SHARE["gpu"]))
    sizes = (arguments.slots, arguments.searches, arguments.trials)
    with tempfile.TemporaryDirectory() as folder:
        stores = [f"{folder}/{s:g}" if arguments.measured else None for s in arguments.seconds]
        found = pd.DataFrame([measure(s, *sizes, store) for s, store in zip(arguments.seconds, stores, strict=True)])
    session.close()
    shown = found.assign(wanted=found["trial_s"].map(WANTED))
    print(shown[[c for c in shown if c not in ("git_commit", "measured_at", "ray_version")]].T.to_string(header=False))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.out.exists():
        found = pd.concat([pd.read_parquet(arguments.out), found], ignore_index=True)
    found.to_parquet(arguments.out, index=False)


if __name__ == "__main__":
    main()

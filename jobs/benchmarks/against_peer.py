"""Searches as the public DeepUnlearn pipeline makes them beside ``raybench run``: trials per hour, the best setting.

    python jobs/benchmarks/against_peer.py --data DIR [--trials 16] [--slots 2] [--serial]

Both sides search the same six methods with the same budget and spaces on the same original and retrained model (MNIST,
lenet5, a random tenth to forget), which are there before the clock starts. The peer's side (``plain_study.py``) runs
study after study, a process each. Ours is one ``raybench run`` on ``--slots`` cores, from its start to its leaderboard,
with Ray's start and the finals in it; a method's share of that time is its share of the trials' seconds. Ours runs
before and after the peer's, so that a machine that gets busier or idler hurts both. ``best`` is the smallest mean gap
of retain, forget and validation accuracy to the retrained model. A large part of the ratio is the second core;
``ratio_per_core`` leaves it out. With ``--serial`` ours runs in one process without Ray and both sides are measured in
process seconds, which other users of the machine change little, all at the same time: then the ratio is per core. Adds
rows to ``results/performance/against_peer.parquet``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rows import PERFORMANCE
from side_by_side import circumstances, keep

import raybench as rb
from raybench.errors import UserError
from raybench.places import data_root
from raybench.run import Options, prepare, run
from raybench.spec import Training
from raybench.workshop import Workshop

METHODS = ("finetune", "neggrad_plus", "scrub", "salun", "ssd", "deepclean")
GAPS = ("retain_accuracy_gap", "forget_accuracy_gap", "validation_accuracy_gap")
PLAIN = Path(__file__).with_name("plain_study.py")


def make_spec(trials: int, train_size: int) -> dict[str, Any]:
    """The experiment of both sides."""
    problem = {
        "dataset": {"name": "mnist", "train_size": train_size, "test_size": 2000},
        "models": ["lenet5"],
        "scenarios": [{"random": {"fraction": 0.1}}],
        "recipe": {"epochs": 10, "batch_size": 64, "lr": 0.05, "augment": False, "weight_decay": 0.0},
    }
    return {
        "name": "against_peer",
        "problems": [problem],
        "methods": list(METHODS),
        "seeds": {"train": [0]},
        "gold_seeds": 2,
        "search": {"trials": trials, "round_size": 4},
    }


def prepared(spec: dict[str, Any], folder: Path, store: Path, data: str | None) -> float:
    """Train the models into ``store``, write what the plain side loads, and give the gold-against-gold gap."""
    alone = {**spec, "methods": ["original"]}
    options = Options(str(folder / "references"), str(store), data, serial=True, quiet=True)
    run(alone, options=options)
    ready = prepare(alone, options, write=False)
    shop = Workshop(ready.settings)
    problem = shop.problem(ready.plan.problems[0])
    for name, reference in (
        ("original", shop.references.original(problem, Training())),
        ("retrained", shop.references.retrained(problem, 0)),
    ):
        torch.save(reference.model.state_dict(), folder / f"{name}.pt")
    arrays = {"mean": problem.pixels.mean.flatten().numpy(), "std": problem.pixels.std.flatten().numpy()}
    for name in ("train", "retain", "forget", "validation", "test"):
        split = problem.splits[name]
        arrays[f"{name}_images"] = split.images[split.index].numpy()[:, 0]
        arrays[f"{name}_labels"] = split.targets.numpy()
    np.savez(folder / "data.npz", **arrays)
    rows = rb.load_trials(folder / "references")
    gold = rows[(rows["method"] == "retrain") & (rows["unlearn_seed"] == 1)]
    return float(gold[list(GAPS)].abs().mean(axis=1).iloc[0])


def timed(command: list[str], serial: bool) -> tuple[float, str]:
    """Seconds of a command (process seconds of it where ``serial``) and what it said."""
    one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of this child alone, whatever others run beside it
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime if serial else time.perf_counter() - began, said


def ours(
    spec: dict[str, Any], folder: Path, store: Path, data: str | None, given: Any
) -> dict[str, tuple[float, float]]:
    """Method -> (seconds of the run that are its own, best mean gap). The store holds no shared values yet."""
    file, results = folder / "spec.yaml", folder / f"ours_{time.monotonic_ns()}"
    file.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "raybench", "run", str(file), "--results", str(results), "--store", str(store)]
    command += ["--serial"] if given.serial else ["--slots", str(given.slots)]
    whole, _ = timed([*command, *(["--data", data] if data else [])], given.serial)
    rows = rb.load_trials(results)
    rows = rows[rows["phase"] == "search"]
    found = {}
    for method, mine in rows.groupby("method"):
        gap = mine[list(GAPS)].abs().mean(axis=1)
        found[str(method)] = (whole * mine["wall_s"].sum() / rows["wall_s"].sum(), float(gap.min()))
    return found


def theirs(folder: Path, method: str, trials: int, serial: bool) -> tuple[float, float]:
    """(seconds, best mean gap) of one study in its own process; process seconds are without the process's start."""
    seconds, said = timed([sys.executable, str(PLAIN), str(folder), method, str(trials)], serial)
    told = json.loads(said.splitlines()[-1])
    return told["search_s"] if serial else seconds, told["best"]


def benchmark(given: Any) -> list[dict[str, Any]]:
    """The rows: one per method, and their geometric mean."""
    spec, data = make_spec(given.trials, given.train_size), data_root(given.data)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        floor = prepared(spec, folder, folder / "store", data)

        def own(turn: int) -> dict[str, tuple[float, float]]:
            copied = folder / f"store{turn}"
            shutil.copytree(folder / "store", copied)
            return ours(spec, folder, copied, data, given)

        def plain(method: str) -> tuple[float, float]:
            return theirs(folder, method, given.trials, given.serial)

        if given.serial:  # process seconds: all at once, so that every one meets the same machine
            with ThreadPoolExecutor(len(METHODS) + 1) as pool:
                first = pool.submit(own, 0)
                studies = dict(zip(METHODS, pool.map(plain, METHODS), strict=True))
                mine = [first.result()]
        else:
            mine = [own(0)]
            studies = {method: plain(method) for method in METHODS}
            mine.append(own(1))
    slots, shown = (1, "process") if given.serial else (given.slots, "wall")
    shared = {"trials": given.trials, "slots": slots, "seconds": shown, "train_size": given.train_size, "floor": floor}
    rows = []
    for method in METHODS:
        seconds = [found[method][0] for found in mine]
        ratios = sorted(studies[method][0] / value for value in seconds)
        rows.append(
            {
                "method": method,
                "ratio": statistics.mean(ratios),
                "ratio_low": ratios[0],
                "ratio_high": ratios[-1],
                "ratio_per_core": statistics.mean(ratios) / slots,
                "trials_per_hour": 3600 * given.trials / statistics.mean(seconds),
                "their_trials_per_hour": 3600 * given.trials / studies[method][0],
                "best": min(found[method][1] for found in mine),
                "their_best": studies[method][1],
                **shared,
                **circumstances(),
            }
        )
    mean = {key: statistics.geometric_mean(row[key] for row in rows) for key in rows[0] if key.startswith("ratio")}
    return [*rows, {"method": "geometric mean", **mean, "at_least": 3.0, **shared, **circumstances()}]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--serial", action="store_true", help="ours without Ray, both sides in process seconds")
    parser.add_argument("--train-size", type=int, default=6667, help="training images, a tenth of them for validation")
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "against_peer.parquet")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        rows = benchmark(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    shown = ["method", "ratio", "ratio_low", "ratio_high", "ratio_per_core", "trials_per_hour"]
    keep(given.out, rows, [*shown, "their_trials_per_hour", "best", "their_best", "floor"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

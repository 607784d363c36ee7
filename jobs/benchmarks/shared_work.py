"""Shared work once: searches with ``task.once`` beside the same searches with ``--no-once``, in turns in one process.

    python jobs/benchmarks/shared_work.py --data DIR [--trials 30] [--repeats 2] [--methods ssd ...]

MNIST, lenet5, one class to forget, one core, ``--serial``. The models are there before the clock starts; no shared
value is, so that a search with sharing pays for computing it once. Counted is the search stage of ``raybench run``:
sampler, trials, rows on disk. Every metric of every search trial must be the same to the bit on both sides. Adds rows
to ``results/performance/shared_work.parquet``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rows import PERFORMANCE
from side_by_side import circumstances, compare, keep, take_turns

import raybench as rb
from raybench.errors import UserError
from raybench.metrics import DEFAULT_METRICS
from raybench.progress import Reporter
from raybench.run import Options, run

CASES: dict[str, tuple[Any, float | None]] = {  # the method as a spec names it, and what the ratio must reach
    "ssd": ("ssd", 5.0),
    "mnemonic_data": ({"name": "mnemonic_data", "hparams": {"n": 1000}}, 3.0),
    "deepclean": ({"name": "deepclean", "hparams": {"epochs": 2, "lr": 1e-3}}, 1.4),
    "mnemonic": ("mnemonic", None),
}


class Stopwatch(Reporter):
    """Says nothing, and takes the time of the search stage."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.search = (0.0, 0.0)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        with super().stage(name, total, done) as advance:
            yield advance
        if name == "search":
            self.search = (time.perf_counter() - wall, time.process_time() - cpu)


def make_spec(method: Any, given: Any) -> dict[str, Any]:
    """One search, one seed."""
    problem = {
        "dataset": {"name": "mnist", "train_size": given.train_size, "test_size": 2000},
        "models": ["lenet5"],
        "scenarios": [{"class": {"classes": [0]}}],
        "recipe": {"epochs": 2, "batch_size": 64, "lr": 0.05},
    }
    search = {"trials": given.trials, "round_size": 10, **({"samples": given.samples} if given.samples else {})}
    return {
        "name": "shared_work",
        "problems": [problem],
        "methods": [method],
        "seeds": {"train": [0]},
        "gold_seeds": 1,
        "curves": False,
        "search": search,
    }


def metrics_of(results: Path) -> pd.DataFrame:
    """What the search trials measured, by trial id."""
    rows = rb.load_trials(results)
    columns = [c for name in DEFAULT_METRICS for c in (name, f"{name}_retrained", f"{name}_gap") if c in rows]
    return rows[rows["phase"] == "search"].set_index("trial_id")[[*columns, "status", "forward_passes"]].sort_index()


def benchmark(method: str, given: Any, root: Path) -> dict[str, Any]:
    """The row of one method."""
    asked, least = CASES[method]
    spec, models = make_spec(asked, given), root / method / "models"
    run({**spec, "search": {"trials": 1}}, options=_options(root / method / "first", models, given, True))
    shutil.rmtree(models / "once-search", ignore_errors=True)
    shutil.rmtree(models / "once-final", ignore_errors=True)
    found: dict[str, pd.DataFrame] = {}

    def search(use_once: bool) -> tuple[float, float]:
        """Seconds of the search stage, with a store that holds the models alone."""
        with tempfile.TemporaryDirectory(dir=root) as folder:
            store, results, watch = Path(folder) / "store", Path(folder) / "results", Stopwatch()
            shutil.copytree(models, store)
            run(spec, options=_options(results, store, given, use_once), reporter=watch)
            mine = metrics_of(results)
        for other in found.values():
            pd.testing.assert_frame_equal(mine, other, check_exact=True)
        found["once" if use_once else "no-once"] = mine
        return watch.search

    taken = take_turns({"no-once": lambda: search(False), "once": lambda: search(True)}, given.repeats, warm=False)
    row = compare(taken, "no-once", "once")
    wall = compare(taken, "no-once", "once", "wall")
    return {
        "method": method,
        **row,
        "ratio_wall": wall["ratio"],
        "at_least": least,
        "trials_per_hour": 3600 * given.trials / row["base_seconds"],
        "trials_per_hour_no_once": 3600 * given.trials / row["seconds"],
        "trials": given.trials,
        "train_size": given.train_size,
        "samples": given.samples,
        "metrics_equal": True,  # or it would have raised
        **circumstances(),
    }


def _options(results: Path, store: Path, given: Any, use_once: bool) -> Options:
    return Options(str(results), str(store), given.data, serial=True, use_once=use_once, quiet=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--train-size", type=int, default=13334, help="training images, a tenth of them for validation")
    parser.add_argument("--samples", type=int, help="evaluate the searches on a part (search.samples)")
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "shared_work.parquet")
    given = parser.parse_args(argv)
    shown = ["method", "ratio", "ratio_low", "ratio_high", "ratio_wall", "at_least", "trials_per_hour", "machine_load"]
    with tempfile.TemporaryDirectory() as root:
        for method in given.methods:
            try:
                row = benchmark(method, given, Path(root))
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            keep(given.out, [row], shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())

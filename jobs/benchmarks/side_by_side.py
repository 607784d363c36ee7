"""What the benchmarks here share: runs that take turns in one process, ratios with their spread, rows in a file."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rows import add_rows

from raybench.places import git_commit
from raybench.version import __version__

Taken = dict[str, list[tuple[float, float]]]  # name -> (wall, process) seconds of each turn


def take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", warm: bool = True) -> Taken:
    """Seconds of each run, ``repeats`` times, after one turn that does not count (``warm``). What else the machine does
    meets all of them alike. A run may give the (wall, process) seconds itself, where only a part of it counts."""
    taken: Taken = {name: [] for name in runs}
    for turn in range(repeats + warm):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            given = run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - wall, time.process_time() - cpu)
            if turn or not warm:
                taken[name].append(given if isinstance(given, tuple) else seconds)
    return taken


def compare(taken: Taken, name: str, base: str, kind: str = "cpu") -> dict[str, float]:
    """How much of ``base``'s seconds ``name`` took: the median over turns, its quartiles, and both medians.
    ``kind``: process seconds (``cpu``) or ``wall``."""
    at = 1 if kind == "cpu" else 0
    ratios = [mine[at] / theirs[at] for mine, theirs in zip(taken[name], taken[base], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "seconds": statistics.median(t[at] for t in taken[name]),
        "base_seconds": statistics.median(t[at] for t in taken[base]),
        "repeats": len(ratios),
    }


def circumstances(threads: int = 1) -> dict[str, Any]:
    """Versions, machine and how busy it is: the columns that every row has."""
    return {
        "threads": threads,
        "cores": os.cpu_count(),
        "machine_load": os.getloadavg()[0],
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "raybench_version": __version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "git_commit": git_commit(),
        "measured_at": datetime.datetime.now(datetime.UTC),
    }


def keep(out: Path, rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> None:
    """Print the columns ``shown`` of the rows and add the rows to the Parquet file ``out``."""
    found = pd.DataFrame(list(rows))
    print(found[list(shown)].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    add_rows(out, rows)

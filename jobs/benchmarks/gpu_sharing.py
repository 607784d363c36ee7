"""What it brings to run several small trials on one GPU at once: trials per hour of 8 processes against 1.

    python jobs/benchmarks/gpu_sharing.py [--processes 8] [--trials 24] [--model lenet5] [--data DIR]

Every process is a ``raybench run --serial`` of a search of its own (its unlearn seed differs), so no Ray is needed. All
share one store, in which the reference models are before the clock starts. A process of n holds ``resources.gpu: 1/n``,
which raybench enforces. Trials per hour are counted from the rows, from the first start to the last end of a search
trial, so that importing torch is left out. Prints a table, says whether every process stayed within its share, and adds
its rows to ``results/performance/gpu_sharing.parquet``. ``--device cpu`` tries the program without a GPU; its rows are
kept only where ``--out`` says so, for they tell nothing of a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from raybench.leaderboard.query import load_trials
from raybench.places import git_commit

OUT = Path(__file__).parents[2] / "results" / "performance" / "gpu_sharing.parquet"
PROVENANCE = ("device_type", "device_name", "cuda_version", "torch_version", "raybench_version", "node")


def spec_of(arguments: argparse.Namespace, processes: int, seed: int, trials: int) -> dict[str, Any]:
    """A small search of ``trials`` settings, for one of ``processes`` that share the device."""
    dataset: dict[str, Any] = {"name": arguments.dataset}
    scenario = {"name": "class", "classes": [0]}
    spec = {
        "name": "gpu_sharing",
        "problems": [{"dataset": dataset, "models": [arguments.model], "scenarios": [scenario]}],
        "methods": [{"name": "finetune", "space": {"epochs": {"low": 2, "high": 4}}}],
        "recipe": {"epochs": arguments.epochs},
        "seeds": {"train": [0], "unlearn": [seed]},
        "gold_seeds": 1,
        "search": {"trials": trials, "round_size": 4},
        "device": arguments.device,
        "curves": False,
        "keep": [],
    }
    return spec if arguments.device == "cpu" else {**spec, "resources": {"gpu": 1.0 / processes}}


def start(arguments: argparse.Namespace, folder: Path, spec: dict[str, Any], name: str) -> subprocess.Popen[bytes]:
    """One serial run; its results are in ``folder/name``."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "raybench", "run", str(path), "--serial", "--quiet"]
    command += ["--results", str(folder / name), "--store", str(folder / "store")]
    command += ["--data", arguments.data] if arguments.data else []
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def finish(runs: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all; a run that did not end well ends this program."""
    codes = [run.wait() for run in runs]
    if any(codes):
        sys.exit(f"gpu_sharing: a run ended with exit code {max(codes)}; what it says is above")


def measure(arguments: argparse.Namespace, folder: Path, processes: int) -> dict[str, Any]:
    """Run ``processes`` searches at once; the row of the table."""
    names = [f"{processes}-{index}" for index in range(processes)]
    specs = [spec_of(arguments, processes, index, arguments.trials) for index in range(processes)]
    finish([start(arguments, folder, spec, name) for spec, name in zip(specs, names, strict=True)])
    rows = pd.concat([load_trials(folder / name) for name in names])
    rows = rows[rows["phase"] == "search"]
    ends = rows["started_at"] + pd.to_timedelta(rows["wall_s"], unit="s")
    seconds = (ends.max() - rows["started_at"].min()).total_seconds()
    cuda = arguments.device == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory if cuda else None
    most = int(rows["footprint"].max()) if cuda else None
    return {
        "processes": processes,
        "trials": len(rows),
        "ok": int((rows["status"] == "ok").sum()),
        "seconds": seconds,
        "trials_per_hour": 3600.0 * len(rows) / seconds,
        "trial_s": float(rows["wall_s"].median()),
        "unlearn_s": float(rows["unlearn_s"].median()),
        "share": 1.0 / processes if cuda else None,
        "most_bytes": most,
        "device_bytes": total,
        "within_share": None if most is None or total is None else most <= total / processes,
        "exclusive": bool(rows["exclusive"].all()),
        "model": arguments.model,
        "dataset": arguments.dataset,
        **{name: rows[name].iloc[0] for name in PROVENANCE},
        "cores": os.cpu_count(),
        "git_commit": git_commit(),
        "measured_at": datetime.datetime.now(datetime.UTC),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=24, help="of each process")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--epochs", type=int, default=5, help="of the reference models")
    parser.add_argument("--data")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_sharing needs a CUDA device, torch sees none here; run it where one is, or try it with --device cpu",
            file=sys.stderr,
        )
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="raybench-sharing-") as temporary:
        folder = Path(temporary)
        finish([start(arguments, folder, spec_of(arguments, 1, 999, 1), "references")])
        found = pd.DataFrame([measure(arguments, folder, count) for count in (1, arguments.processes)])
    shown = [c for c in found if c not in ("git_commit", "measured_at")]
    print(found[shown].T.to_string(header=False))
    print(f"{found['trials_per_hour'].iloc[1] / found['trials_per_hour'].iloc[0]:.2f} times as many trials per hour")
    out = arguments.out or (OUT if arguments.device == "cuda" else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            found = pd.concat([pd.read_parquet(out), found], ignore_index=True)
        found.to_parquet(out, index=False)
    if not (found["ok"] == found["trials"]).all() or (found["within_share"] == False).any():  # noqa: E712
        sys.exit("gpu_sharing: a trial was not ok, or a process held more than its share")


if __name__ == "__main__":
    main()

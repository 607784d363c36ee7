"""What evaluating one unlearned model costs, in forward passes over the splits that it needs.

    python jobs/benchmarks/evaluation_cost.py --data DIR [--repeats 9]

LeNet-5 on MNIST (all 70,000 images), class 0 forgotten, the default metrics. A bare forward pass over the splits and
the whole evaluation (outputs and metrics, as in a final trial; the retrained model's outputs are there already) take
turns, so that whatever else the machine does meets both. The ratio of the medians is printed, by process and by wall
seconds, and a row is added to ``results/performance/evaluation_cost.parquet``.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from raybench.errors import UserError
from raybench.evaluation import BATCH_SIZE, extras_of, measure, outputs_of, splits_for
from raybench.metrics import DEFAULT_METRICS
from raybench.outputs import MetricContext
from raybench.places import data_root, git_commit
from raybench.problem import Problem, load_data
from raybench.seeding import torch_generator
from raybench.spec import Choice, ProblemSpec, Training
from raybench.training import Recipe, fit
from raybench.version import __version__
from raybench.workshop import Settings, Workshop

ROWS = Path(__file__).parent.parent.parent / "results" / "performance" / "evaluation_cost.parquet"
RECIPE = {"epochs": 2, "batch_size": 128, "lr": 0.05, "augment": False}
THREADS = 1


def unlearned(problem: Problem, original: nn.Module, seed: int) -> nn.Module:
    """The original after an epoch on the retain set: any model would do that is neither of the references."""
    model = copy.deepcopy(original).requires_grad_(True)
    fit(model, problem.splits["retain"].bound(torch_generator("tune", seed)), Recipe(epochs=1, lr=0.01, augment=False))
    return model


def forward(model: nn.Module, problem: Problem) -> None:
    """One pass over every split of a final trial, keeping nothing."""
    with torch.no_grad():
        for name in splits_for(final=True):
            if name in problem.splits:
                for images, _ in problem.splits[name].batches(BATCH_SIZE):
                    model(images)


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and process seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def benchmark(root: str | None, seed: int, repeats: int) -> dict[str, Any]:
    """Train what is needed, measure, and return the row."""
    dataset = Choice("mnist")
    checksum = load_data(dataset, root, False)[1]
    scenario = Choice("class", {"classes": [0]})
    spec = ProblemSpec(dataset, checksum, Choice("lenet5"), scenario, RECIPE, seed, threads=THREADS)
    with tempfile.TemporaryDirectory() as store:
        shop = Workshop(Settings("evaluation_cost", store, DEFAULT_METRICS, data_root=root))
        problem = shop.problem(spec)
        original, retrained = shop.references.original(problem, Training()), shop.references.retrained(problem, 0)
        known = [shop.references.outputs(problem, reference) for reference in (original, retrained)]
    context = MetricContext(
        num_classes=problem.facts.num_classes,
        forget_classes=problem.facts.forget_classes,
        extras=extras_of(known[0], problem.replaced, final=True),
    )
    model, missing = unlearned(problem, original.model, seed), {}

    def evaluation() -> None:
        outputs = outputs_of(model, problem.splits, splits_for(final=True))
        missing.update(measure(DEFAULT_METRICS, outputs, known[1], context)[1])

    runs = {"forward": lambda: forward(model, problem), "evaluation": evaluation}
    for run in runs.values():
        run()  # imports, and the retrained model's own numbers: once per process
    taken = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    median = {
        (n, kind): statistics.median(t[i] for t in taken[n]) for n in runs for i, kind in enumerate(("wall", "cpu"))
    }
    if missing:
        raise RuntimeError(f"the default metrics must all be there to be timed, missing: {missing}")
    return {
        "ratio_cpu": median["evaluation", "cpu"] / median["forward", "cpu"],
        "ratio_wall": median["evaluation", "wall"] / median["forward", "wall"],
        **{f"{name}_{kind}_s": value for (name, kind), value in median.items()},
        "images": sum(len(problem.splits[n]) for n in splits_for(final=True) if n in problem.splits),
        "metrics": len(DEFAULT_METRICS),
        "repeats": repeats,
        "seed": seed,
        "threads": THREADS,
        "raybench_version": __version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "machine": platform.machine(),
        "git_commit": git_commit(),
        "measured_at": datetime.datetime.now(datetime.UTC),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROWS, help="Parquet file to add the row to")
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    torch.set_num_threads(THREADS)
    try:
        with threadpool_limits(THREADS):
            row = benchmark(data_root(given.data), given.seed, given.repeats)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for kind in ("cpu", "wall"):
        print(
            f"{kind}: forward {row[f'forward_{kind}_s']:.2f} s, evaluation {row[f'evaluation_{kind}_s']:.2f} s, "
            f"ratio {row[f'ratio_{kind}']:.3f}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    earlier = [pd.read_parquet(given.out)] if given.out.exists() else []
    pd.concat([*earlier, pd.DataFrame([row])], ignore_index=True).to_parquet(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

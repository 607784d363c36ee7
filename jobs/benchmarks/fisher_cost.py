"""What exact per-sample Fisher diagonals cost: against an ordinary forward and backward pass over the same samples.

    python jobs/benchmarks/fisher_cost.py [--repeats 9] [--device cpu]

Four ways on the same images and weights: ``fisher_diag`` (gradients of layers from their inputs and output gradients),
``torch.func``'s ``vmap(grad)`` for every parameter, a loop of batches of one (on a part of the samples, its seconds
scaled), and the ordinary pass with the same batch size that all are divided by. They take turns in one process. The
largest difference from the loop in float64 stands beside, relative to the entry or, where that is smaller, to a
hundredth of its tensor's largest. Adds rows to
``results/performance/fisher_cost.parquet``.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import PERFORMANCE
from side_by_side import circumstances, compare, keep, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from raybench import sample_gradients
from raybench.fisher import fisher_diag
from raybench.problem import build_model
from raybench.seeding import seeded_globals
from raybench.spec import Choice

BATCH = 64
LOOPED = 64  # samples of the loop
SMALL_VIT = Choice("vit_tiny", {"patch": 4, "width": 64, "depth": 4, "heads": 2})
CASES = (  # model, shape, samples on a CPU, at most so many times the ordinary pass
    (Choice("lenet5"), (1, 28, 28), 1024, 2.0),
    (Choice("resnet8"), (3, 32, 32), 256, 3.0),
    (SMALL_VIT, (3, 32, 32), 256, 3.0),
)


def ordinary(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward over all samples, as a training step has it."""
    for some, their in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(some), their).backward()


def everything_mapped(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """``vmap(grad)`` for every parameter: the path of unknown layers, taken by all."""
    known, sample_gradients.FAST = sample_gradients.FAST, ()
    spreading, sample_gradients.SPREADING = sample_gradients.SPREADING, ()
    try:
        fisher_diag(model, images, labels, batch_size=BATCH)
    finally:
        sample_gradients.FAST, sample_gradients.SPREADING = known, spreading


def looped(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The definition: a batch of one at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for sums, g in zip(total.values(), grads, strict=True):
            sums += g.square()
    return {name: sums.detach() / len(labels) for name, sums in total.items()}


def benchmark(model: Choice, shape: tuple[int, int, int], samples: int, floor: float, given: Any) -> list[dict]:
    """The rows of one network."""
    device = torch.device(given.device)
    with seeded_globals(given.seed):
        network = build_model(model, 10, shape).eval().to(device)
    draw = torch.Generator().manual_seed(given.seed)
    images = torch.randn(samples, *shape, generator=draw).to(device)
    labels = torch.randint(10, (samples,), generator=draw).to(device)
    few = slice(0, LOOPED)

    def loop() -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        looped(network, images[few], labels[few])
        if device.type == "cuda":
            torch.cuda.synchronize()
        times = samples / LOOPED
        return (time.perf_counter() - began) * times, (time.process_time() - cpu) * times

    runs = {
        "ordinary": lambda: ordinary(network, images, labels),
        "layers": lambda: fisher_diag(network, images, labels, batch_size=BATCH) and None,
        "vmap": lambda: everything_mapped(network, images, labels),
        "loop": loop,
    }
    taken = take_turns(runs, given.repeats, given.device)
    exact = looped(copy.deepcopy(network).double(), images[few].double(), labels[few])
    found = fisher_diag(network, images[few], labels[few], batch_size=BATCH)
    errors = [
        float(((found[n].double() - v).abs() / v.abs().clamp(min=1e-2 * float(v.max()))).max())
        for n, v in exact.items()
    ]
    return [
        {
            "way": way,
            "model": model.label,
            "samples": samples,
            **compare(taken, way, "ordinary", "wall" if device.type == "cuda" else "cpu"),
            "at_most": floor if way == "layers" else None,
            "largest_error": max(errors) if way == "layers" else None,
            "batch_size": BATCH,
            "seed": given.seed,
            **circumstances(),
        }
        for way in ("layers", "vmap", "loop")
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--samples", type=float, default=1.0, help="times as many samples as usual")
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "fisher_cost.parquet")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for model, shape, samples, floor in CASES:
        rows += benchmark(model, shape, int(samples * given.samples), floor, given)
    keep(given.out, rows, ["model", "way", "samples", "ratio", "ratio_low", "ratio_high", "at_most", "largest_error"])


if __name__ == "__main__":
    main()

"""Ways to run a forward pass for evaluation, in turns: what the product does beside what people advise.

    python jobs/benchmarks/evaluation_ways.py [--images 1024] [--repeats 7] [--models lenet5 resnet8 ...]

``plain`` is batches of 1,024 contiguous images under ``torch.no_grad``, which is what raybench does. The others change
one thing: the batch (64, 256), ``inference_mode``, the memory format ``channels_last`` of model and images. Ratios are
of process seconds to ``plain``, below 1 is faster; ``equal`` says whether the logits are the same to the bit. Random
weights and images, 3x32x32, one thread (on CUDA the device's own way to compute). Adds rows to
``results/performance/evaluation_ways.parquet``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import PERFORMANCE
from side_by_side import circumstances, compare, keep, take_turns
from torch import Tensor, nn

from raybench.evaluation import BATCH_SIZE
from raybench.heap import keep_freed_memory
from raybench.problem import build_model
from raybench.spec import Choice

SHAPE = (3, 32, 32)
MODELS: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "resnet8": {},
    "resnet18": {},
    "vgg8": {},
    "vit_tiny": {"patch": 4, "width": 64, "depth": 4, "heads": 4},
}
LAST = torch.channels_last


def ways(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """A pass over ``images`` [n, 3, 32, 32] each, to logits [n, 10]."""

    def run(batch: int = BATCH_SIZE, guard: Any = torch.no_grad, layout: torch.memory_format | None = None) -> Tensor:
        with guard():
            if layout is None:
                return torch.cat([model(part) for part in images.split(batch)])
            turned = model.to(memory_format=layout)  # counted: every trial has another model
            found = torch.cat([turned(part.contiguous(memory_format=layout)) for part in images.split(batch)])
            model.to(memory_format=torch.contiguous_format)
            return found

    return {
        "plain": run,
        "batch_64": lambda: run(64),
        "batch_256": lambda: run(256),
        "inference_mode": lambda: run(guard=torch.inference_mode),
        "channels_last": lambda: run(layout=LAST),
    }


def benchmark(name: str, given: Any) -> list[dict[str, Any]]:
    """The rows of one model."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(Choice(name, MODELS[name]), 10, SHAPE).eval().to(device)
    images = torch.randn(given.images, *SHAPE, device=device)
    runs = ways(model, images)
    wanted = runs["plain"]()
    equal = {way: bool(torch.equal(run(), wanted)) for way, run in runs.items()}
    taken = take_turns(runs, given.repeats, device)
    kind = "wall" if device == "cuda" else "cpu"
    return [
        {"model": name, "way": way, "images": given.images, "equal": equal[way]}
        | compare(taken, way, "plain", kind)
        | circumstances()
        for way in runs
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "evaluation_ways.parquet")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in given.models:
        keep(given.out, benchmark(name, given), ["model", "way", "ratio", "ratio_low", "ratio_high", "equal"])


if __name__ == "__main__":
    main()

"""What the harness looks at while a method runs: curves of accuracy at its checkpoints, off the clock.

A curve is for people: no search, selection or method ever sees it. Each point is the accuracy on the first
``CURVE_SAMPLES`` of a fixed random order of the split, so that a curve costs the same on any dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from raybench.data import Split
from raybench.evaluation import outputs_of
from raybench.seeding import torch_generator
from raybench.task_kinds import CLASSIFYING, TaskKind

CURVE_SAMPLES = 1000
CURVE_SPLITS = ("retain", "forget", "test", "test_forgotten")


class Observer:
    """Draws the curves of one trial. ``points`` are records of the series table."""

    def __init__(
        self, trial_id: str, splits: Mapping[str, Split], elapsed: Callable[[], float], kind: TaskKind = CLASSIFYING
    ) -> None:
        self._trial_id, self._kind = trial_id, kind
        self._elapsed = elapsed
        self._splits = {name: _sample(splits[name]) for name in CURVE_SPLITS if name in splits and len(splits[name])}
        self.points: list[dict[str, Any]] = []
        self._steps = self._before = 0  # of this request, and of all requests before it

    def next_request(self) -> None:
        """Steps count on from here: a method counts those of each request from 1."""
        self._before, self._steps = self._before + self._steps, 0

    def __call__(self, model: nn.Module, step: int, scalars: Mapping[str, float]) -> None:
        """A checkpoint: accuracy per split as ``<split>_accuracy`` (without classes the mean loss, ``<split>_loss``),
        scalars as ``reported_<name>``."""
        seconds, self._steps = self._elapsed(), max(self._steps, step)
        step += self._before
        outputs = outputs_of(model, self._splits, self._splits, self._kind)
        values = {}
        for name, split in outputs.items():
            if split.sample_losses is None:
                values[f"{name}_accuracy"] = float(split.correct.double().mean())
            else:
                values[f"{name}_loss"] = float(split.losses.mean())
        values |= {f"reported_{name}": float(value) for name, value in scalars.items()}
        for name, value in values.items():
            y = value if math.isfinite(value) else None
            self.points.append({"trial_id": self._trial_id, "name": name, "step": step, "x": seconds, "y": y})


def _sample(split: Split) -> Split:
    if len(split) <= CURVE_SAMPLES:
        return split
    order = torch.randperm(len(split), generator=torch_generator("curve", len(split)))
    return split.subset(order[:CURVE_SAMPLES].sort().values)

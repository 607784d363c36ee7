"""A tiny real task for tests of methods: digits, a small model trained for a few epochs, one request.

Method authors use it too: ``make_task("my_method")`` is all their test needs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybench.data import Pixels, RawData, Split
from raybench.passes import Clock, PassCounter
from raybench.probe import Probe
from raybench.registry import CLASS, DATASETS, FORGET, METHODS, MODELS, RETAIN, SAMPLE, TRAININGS, VALIDATION
from raybench.seeding import numpy_generator, seeded_globals, torch_generator
from raybench.space import resolve
from raybench.task import Compute, Facts, Once, UnlearningTask
from raybench.training import Recipe, Trained, TrainingJob, train_standard
from raybench.version import PACKAGE

RECIPE = Recipe(epochs=12, batch_size=32, lr=0.05, augment=False)


@dataclass(frozen=True)
class Bench:
    """A trained original with its splits: ``retain forget validation`` (class 0, or 20 % of the samples)."""

    original: Trained
    splits: Mapping[str, Split]
    facts: Facts
    pixels: Pixels
    model_options: tuple[tuple[str, Any], ...]
    train: Split | None = None

    def build(self) -> nn.Module:
        """A new network of the bench's architecture."""
        entry = MODELS[self.facts.model]
        model: nn.Module = entry.fn(self.facts.num_classes, self.facts.input_shape, **dict(self.model_options))
        return model


def images_to_split(images: Tensor, labels: Tensor, index: np.ndarray, pixels: Pixels) -> Split:
    """A split over shared images."""
    return Split(images, labels, torch.as_tensor(index, dtype=torch.int64), pixels)


@functools.cache
def make_bench(
    model: str = "lenet5",
    kind: str = CLASS,
    training: str | None = None,
    samples: int = 600,
    seed: int = 0,
    device: str = "cpu",
    model_options: tuple[tuple[str, Any], ...] = (),
) -> Bench:
    """The bench of one model and one kind of request (cached: never change what it holds)."""
    raw: RawData = DATASETS["digits"].fn(None, False, train_size=samples)
    where = torch.device(device)
    pixels = Pixels(*(torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1).to(where) for v in (raw.mean, raw.std)))
    images, labels = torch.from_numpy(raw.x_train.copy()).to(where), torch.from_numpy(raw.y_train.copy()).to(where)
    order = numpy_generator("bench", seed).permutation(samples)
    train, held_out = order[: samples * 5 // 6], order[samples * 5 // 6 :]
    forgotten = raw.y_train[train] == 0 if kind == CLASS else np.arange(len(train)) < len(train) // 5
    kept = held_out[raw.y_train[held_out] != 0] if kind == CLASS else held_out
    forgotten_classes = (0,) if kind == CLASS else ()
    facts = Facts(
        "digits", model, raw.num_classes, raw.input_shape, forgotten_classes, kind, model_options=dict(model_options)
    )
    bench = Bench(Trained(nn.Identity()), {}, facts, pixels, model_options)
    split = functools.partial(images_to_split, images, labels, pixels=pixels)
    entry = TRAININGS[training] if training else None
    whole = split(index=np.sort(train)).bound(torch_generator("fit", seed, device=where))
    job = TrainingJob(
        train=whole,
        recipe=RECIPE,
        hparams=entry.hparams() if entry else None,
        seed=seed,
        build=bench.build,
        num_classes=raw.num_classes,
        input_shape=raw.input_shape,
        generator=torch_generator("job", seed, device=where),
        device=where,
    )
    trained: Trained = entry.fn(job) if entry else train_standard(job)
    splits = {
        FORGET: split(index=train[forgotten]),
        RETAIN: split(index=train[~forgotten]),
        VALIDATION: split(index=kept),
    }
    return Bench(trained, splits, facts, pixels, model_options, whole)


def make_task(
    method: str | None = None,
    *,
    bench: Bench | None = None,
    model: str = "lenet5",
    kind: str | None = None,
    seed: int = 0,
    needs: frozenset[str] | None = None,
    once: Once | None = None,
    on_checkpoint: Callable[[nn.Module, int, Mapping[str, float]], None] | None = None,
    **bench_options: Any,
) -> UnlearningTask:
    """A task as the harness would hand it to ``method`` (its scope, needs and own training respected).

    ``bench_options`` go to ``make_bench``; ``once`` replaces the store of shared values, which keeps nothing here.
    """
    entry = METHODS[method] if method else None
    if bench is None:
        scope = entry.scope if entry else frozenset({CLASS, SAMPLE})
        kind = kind or (CLASS if CLASS in scope else SAMPLE)
        bench = make_bench(model, kind, entry.training if entry else None, **bench_options)
    device = bench.splits[FORGET].images.device

    def compute_anew(name: str, compute: Compute, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        value = compute(torch_generator("once", name, inputs, seed, device=device))
        return {"value": value} if isinstance(value, Tensor) else dict(value)

    with seeded_globals(0):
        unit = bench.build()
    declared = needs if needs is not None else entry.needs if entry else frozenset({FORGET, RETAIN, VALIDATION})
    return UnlearningTask(
        original=bench.original.model,
        build=bench.build,
        splits=bench.splits,
        needs=declared,
        facts=bench.facts,
        pixels=bench.pixels,
        recipe=RECIPE,
        generator=torch_generator("task", seed, device=device),
        clock=Clock(device),
        passes=PassCounter(unit.to(device), bench.facts.input_shape),
        positions={n: bench.splits[n].positions_in(bench.train) for n in (FORGET, RETAIN) if bench.train is not None},
        once=once or compute_anew,
        on_checkpoint=on_checkpoint,
        artefacts=bench.original.artefacts,
        resources=PACKAGE / "resources" / method if method else None,
    )


@functools.cache
def make_retrained(**bench_options: Any) -> nn.Module:
    """The model that the bench of ``bench_options`` is trained to without its forget set (never change it)."""
    bench = make_bench(**bench_options)
    device = bench.splits[RETAIN].images.device
    job = TrainingJob(
        train=bench.splits[RETAIN].bound(torch_generator("fit", "retrained", device=device)),
        recipe=RECIPE,
        hparams=None,
        seed=1,
        build=bench.build,
        num_classes=bench.facts.num_classes,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("job", "retrained", device=device),
        device=device,
    )
    return train_standard(job).model


def make_probe(unlearned: nn.Module | None = None, /, **bench_options: Any) -> Probe:
    """What a metric registered with ``probe=True`` gets for an ``unlearned`` model (default: the original itself)."""
    bench = make_bench(**bench_options)
    assert bench.train is not None
    original, retrained = bench.original.model, make_retrained(**bench_options)
    ours, first, gold = (
        copy.deepcopy(m).requires_grad_(True).eval() for m in (unlearned or original, original, retrained)
    )
    return Probe(ours, first, gold, {**bench.splits, "train": bench.train}, bench.build, RECIPE, seed=("bench", 0))


def run_method(method: str, task: UnlearningTask | None = None, *, tiny: bool = True, **overrides: Any) -> Any:
    """``method`` on ``task`` with its ``tiny`` overrides and then yours; returns what the method returns."""
    entry = METHODS[method]
    values = {**(entry.tiny if tiny else {}), **overrides}
    return entry.fn(task or make_task(method), resolve(entry.hparams, values, method))

"""Training histories of small networks, the raw material of rewinding predictors: record them, cut windows from them.

A history is the weights of one network at the start and after every epoch of its training, float32
``name -> [epochs + 1, ...]``. Each is an entry of a ``ContentStore`` under the hash of all that made it, so none is
trained twice, and a half-written one does not exist. Collected side by side by ``raybench.cluster.histories``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from raybench.content_store import ContentStore
from raybench.data import Pixels, RawData, Split
from raybench.errors import UserError
from raybench.evaluation import outputs_of
from raybench.mechanisms.rewinding import BACK, HISTORY, KINDS, kind_of
from raybench.problem import build_model, load_data
from raybench.seeding import content_hash, derive_seed, numpy_generator, seeded_globals, torch_generator
from raybench.space import resolve
from raybench.spec import Choice
from raybench.training import Recipe, fit

KIND = "histories"
FORMAT = 1  # moves when an unchanged run would give other weights
STILL = -8  # windows whose mean step is below 1e-8 are one stratum: single precision sees no less


@dataclass(frozen=True)
class HistoryRun:
    """One network to train. ``key`` identifies what comes of it, given the content of the dataset."""

    dataset: Choice
    model: Choice
    lr: float
    batch_size: int
    epochs: int
    seed: int
    optimiser: str = "adam"

    def key(self, checksum: str) -> str:
        """Content hash."""
        return content_hash(["history", FORMAT, checksum, dataclasses.replace(self, dataset=Choice("content"))], 32)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> HistoryRun:
        """The inverse of ``seeding.canonical``."""
        return cls(**{**plain, "dataset": Choice(**plain["dataset"]), "model": Choice(**plain["model"])})


@dataclass(frozen=True)
class HistoryFamily:
    """Networks of one architecture on one dataset; every run draws its own learning rate and batch size."""

    dataset: Choice
    """Name and options, as in an experiment."""
    model: Choice
    """Name and options, as in an experiment."""
    runs: int = 1
    """How many networks."""
    epochs: int = 30
    """Epochs of each."""
    lr: tuple[float, ...] = (1e-5, 4e-3)
    """Ends of the learning rate's range, drawn log-uniformly."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Batch sizes to draw from."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    """Update rule."""
    held_out: bool = False
    """Validate predictors on these runs instead of training on them."""


@dataclass(frozen=True)
class HistoryPlan:
    """All runs of a spec: those to train predictors on, and those held out."""

    name: str
    runs: tuple[HistoryRun, ...]
    held_out: tuple[HistoryRun, ...]

    @property
    def all(self) -> tuple[HistoryRun, ...]:
        """Every run, held out or not."""
        return self.runs + self.held_out


def plan_histories(spec: Mapping[str, Any]) -> HistoryPlan:
    """The runs of a spec ``{name, seed, families: [...]}``, a pure function of it; ``UserError`` where it is wrong."""
    extra = set(spec) - {"name", "description", "seed", "families", "training"}
    if extra or not isinstance(spec.get("families"), Sequence) or not spec["families"]:
        raise UserError(
            f"a spec of histories must have name, seed, families (a list) and training, got {', '.join(spec)}; mend it"
        )
    found: dict[bool, list[HistoryRun]] = {False: [], True: []}
    for position, values in enumerate(spec["families"]):
        where = f"families.{position}"
        chosen = {key: _choice(values.get(key), f"{where}.{key}") for key in ("dataset", "model")}
        family = resolve(HistoryFamily, {**values, **chosen}, where)
        if len(family.lr) != 2 or not 0 < family.lr[0] <= family.lr[1]:
            raise UserError(f"{where}.lr must be two positive ends, low first, got {family.lr}; change it")
        if family.epochs < HISTORY + BACK - 1:
            raise UserError(
                f"{where}.epochs must be at least {HISTORY + BACK - 1}, one window, got {family.epochs}; train longer"
            )
        for index in range(family.runs):
            rng = numpy_generator("history", spec.get("seed", 0), position, index)
            low, high = (math.log(end) for end in family.lr)
            run = HistoryRun(
                dataset=family.dataset,
                model=family.model,
                lr=float(f"{math.exp(rng.uniform(low, high)):.6g}"),
                batch_size=int(rng.choice(family.batch_sizes)),
                epochs=family.epochs,
                seed=derive_seed("history", spec.get("seed", 0), position, index),
                optimiser=family.optimiser,
            )
            found[family.held_out].append(run)
    return HistoryPlan(str(spec.get("name", "histories")), tuple(found[False]), tuple(found[True]))


def _choice(given: Any, where: str) -> Choice:
    options = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{where} must be a name, or a mapping {{name: ..., options}}, got {given!r}; mend it")
    return Choice(name, options)


def collect(run: HistoryRun, store: ContentStore, root: str | None, download: bool = False) -> str:
    """Train and keep one history unless the store has it; returns its key. The record beside the weights holds the
    run, its seconds and its training accuracy."""
    raw, checksum = load_data(run.dataset, root, download)
    key = run.key(checksum)
    if not store.has(KIND, key):
        started = time.perf_counter()
        weights, accuracy = train_history(run, raw)
        record = {"run": dataclasses.asdict(run), "train_s": time.perf_counter() - started, "accuracy": accuracy}
        store.put(KIND, key, weights, record)
    return key


def train_history(run: HistoryRun, raw: RawData) -> tuple[dict[str, Tensor], float]:
    """Parameters at the start and after each epoch, name -> [epochs + 1, ...], and the final training accuracy.

    Adam (or what the run says) on cross-entropy with a constant rate and no augmentation, on one CPU device.
    """
    pixels = Pixels(*(torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (raw.mean, raw.std)))
    rows = torch.arange(len(raw.y_train))
    split = Split(
        torch.from_numpy(raw.x_train.copy()),
        torch.from_numpy(raw.y_train.copy()),
        rows,
        pixels,
        generator=torch_generator("history", run.seed),
    )
    with seeded_globals(run.seed):
        model = build_model(run.model, raw.num_classes, raw.input_shape)
        recorded = {name: [p.detach().clone()] for name, p in model.named_parameters()}

        def record(_: int) -> None:
            for name, p in model.named_parameters():
                recorded[name].append(p.detach().clone())

        values = {"optimiser": run.optimiser, "lr": run.lr, "batch_size": run.batch_size, "epochs": run.epochs}
        recipe = resolve(Recipe, {**values, "weight_decay": 0.0, "schedule": "none", "augment": False}, "history")
        fit(model, split, recipe, after_epoch=record)
    return {name: torch.stack(states) for name, states in recorded.items()}, float(
        outputs_of(model, {"train": split}, ["train"])["train"].correct.double().mean()
    )


@dataclass(frozen=True)
class Windows:
    """Samples for a predictor: histories [K, n] in the order of time, and residuals theta_{t-U} - theta_t [n]."""

    history: Tensor
    residual: Tensor

    def __len__(self) -> int:
        return int(self.residual.numel())


@dataclass
class Sampler:
    """Cuts windows from histories, equally many from each decade of |delta theta| as far as there are so many.

    Most coordinates barely move, so plain sampling would see little else. The decade is that of the mean absolute
    step inside the window, which a predictor sees; strata of the residual would select on what it has to predict.
    """

    generator: torch.Generator
    per_kind: int
    """Windows per history and operation type."""
    candidates: int = 8
    """Windows drawn for each one that is kept."""
    _kept: dict[str, list[Windows]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Draw from one history ``name -> [T, ...]``."""
        for kind in KINDS:
            parts = [t.flatten(1) for t in weights.values() if kind_of(t[0]) == kind]
            if parts:
                self._kept[kind].append(self._draw(torch.cat(parts, dim=1)))

    def windows(self) -> dict[str, Windows]:
        """All windows so far, by operation type (types that no history had are absent)."""
        return {
            kind: Windows(torch.cat([w.history for w in kept], 1), torch.cat([w.residual for w in kept]))
            for kind, kept in self._kept.items()
            if kept
        }

    def _draw(self, paths: Tensor) -> Windows:
        """Windows of one operation type from its paths [T, P]."""
        length, coordinates = paths.shape
        starts = length - HISTORY - BACK + 1
        total = starts * coordinates
        count = min(total, self.candidates * self.per_kind)
        drawn = torch.randperm(total, generator=self.generator)[:count]
        start, column = drawn // coordinates, drawn % coordinates
        windows = torch.stack([paths[start + k, column] for k in range(BACK + HISTORY)])
        history = windows[BACK:]
        chosen = self._strata((history[1:] - history[:-1]).abs().mean(dim=0))
        return Windows(history[:, chosen], (windows[0] - windows[BACK])[chosen])

    def _strata(self, step: Tensor) -> Tensor:
        """Positions of ``per_kind`` windows: round-robin over the decades of their mean step, random inside one."""
        decade = step.clamp(min=10.0**STILL).log10().floor()
        rank = torch.empty_like(decade)
        for value in decade.unique():
            members = (decade == value).nonzero().squeeze(1)
            rank[members] = torch.randperm(len(members), generator=self.generator).to(rank.dtype)
        return rank.argsort(stable=True)[: self.per_kind]

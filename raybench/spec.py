"""Specifications of problems, reference models and trials, and the content hashes that identify them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raybench.seeding import canonical, text_hash, to_json

PROTOCOL = "1"  # moves when the numbers of an unchanged spec would move

SEARCH = "search"
FINAL = "final"
REFERENCE = "reference"
ORACLE = "oracle"  # models that only serve per-example attacks
STANDARD = "standard"
FILE = "file"  # the option of a scenario that is a file, identified by its content
CLEAN = "clean"  # variant of the retrained models that see all samples as they were before the scenario changed them
SHADOW = "shadow"  # variant of the retrained models whose retain set is a random half of the training split
UNSAID = ("stop", "samples")  # of a trial: not in its id where they are None
PLAIN = ("classes", "fraction")  # options that need no name when they stand alone: class(0), random(0.1)


@dataclass(frozen=True)
class Choice:
    """A registered name with its options, as a spec gives it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How people read it: ``lenet5``, ``class(0)``, ``mnist(train_size=6000)``."""
        if not self.options:
            return self.name
        if len(self.options) == 1 and next(iter(self.options)) in PLAIN:
            return f"{self.name}({_short(next(iter(self.options.values())))})"
        return f"{self.name}({', '.join(f'{k}={_short(v, k)}' for k, v in sorted(self.options.items()))})"


@dataclass(frozen=True)
class ProblemSpec:
    """dataset x model x scenario x train seed, with everything that changes what is trained."""

    dataset: Choice
    checksum: str
    model: Choice
    scenario: Choice
    recipe: Mapping[str, Any]
    train_seed: int
    split_seed: int = 0
    draw_seed: int = 0
    validation: float = 0.1
    threads: int = 1
    device_type: str = "cpu"
    versions: Mapping[str, int | str] = field(default_factory=dict)  # of the model's and the scenario's code, and the
    # digests of the files that they name
    train_workers: int = 1  # processes that share the training of each reference model

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the problem: of the dataset its content, not the path or the options it came by."""
        plain = self.to_dict()
        plain["model"] = canonical(self.network)
        if FILE in self.versions:
            plain["scenario"]["options"][FILE] = self.versions[FILE]
        return plain | {"dataset": self.dataset.name.partition(":")[0]}  # npz:<path> is npz

    @property
    def network(self) -> Choice:
        """The model as it is identified: by the content of its weight file, not by the path."""
        digest = self.versions.get("weights")
        return self.model if digest is None else Choice(self.model.name, {**self.model.options, "weights": digest})

    @cached_property
    def id(self) -> str:
        """Content hash."""
        return text_hash(self.identity_json)

    @cached_property
    def identity_json(self) -> str:
        """``identity`` as canonical JSON, made once for all trials of the problem."""
        return to_json(self.identity)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``train_workers`` only above 1, so that other problems keep their ids."""
        plain: dict[str, Any] = canonical(self)
        if self.train_workers == 1:
            del plain["train_workers"]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ProblemSpec:
        """The inverse of ``to_dict``."""
        return cls(**{**plain, **{key: Choice(**plain[key]) for key in ("dataset", "model", "scenario")}})


@dataclass(frozen=True)
class Training:
    """Which original a method starts from: the standard one or an own training with its settings."""

    kind: str = STANDARD
    version: int = 1
    hparams: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialSpec:
    """One method, one setting, one problem, one unlearn seed. ``variant`` counts in finals only, where two
    lines of one spec may ask for the same setting. ``stop`` is the stopping rule, see ``raybench.stopping``.

    In the phase ``oracle`` the unlearn seed is the number of the model in the pool: of an original, a retrained model,
    a shadow model (method ``retrain``, variant SHADOW), or of the original that the method unlearns.
    """

    problem: ProblemSpec
    method: str
    method_version: int
    hparams: Mapping[str, Any]
    unlearn_seed: int
    phase: str
    training: Training = field(default_factory=Training)
    variant: str = ""
    protocol: str = PROTOCOL
    stop: Mapping[str, Any] | None = None
    samples: int | None = None  # of each split that a search trial is evaluated on; None: all

    @cached_property
    def trial_id(self) -> str:
        """Content hash: the identity of the row this trial leaves, of ``to_dict`` with the problem's identity."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "problem"}
        texts = {name: to_json(value) for name, value in plain.items() if name not in UNSAID or value is not None}
        texts["problem"] = self.problem.identity_json
        return text_hash("{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; no ``stop`` where there is no rule and no ``samples`` where all are looked at, so that such
        trials keep their ids."""
        plain: dict[str, Any] = canonical(self) | {"problem": self.problem.to_dict()}
        return {key: value for key, value in plain.items() if key not in UNSAID or value is not None}

    @property
    def original_index(self) -> int:
        """Which original of the pool the trial starts from; 0 is the one that every row but the pool's is about."""
        return self.unlearn_seed if self.phase == ORACLE and self.method != "retrain" else 0

    def in_world(self, index: int) -> TrialSpec:
        """The same method and setting on original ``index`` of the pool."""
        return dataclasses.replace(self, phase=ORACLE, unlearn_seed=index, variant="")

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrialSpec:
        """The inverse of ``to_dict``."""
        problem = ProblemSpec.from_dict(plain["problem"])
        return cls(**{**plain, "problem": problem, "training": Training(**plain["training"])})


def with_seed(problem: ProblemSpec, train_seed: int) -> ProblemSpec:
    """The same cell at another train seed."""
    return dataclasses.replace(problem, train_seed=train_seed)


def _short(value: Any, option: str = "") -> str:
    if option in ("weights", FILE):  # a path that is as long as it is
        return Path(str(value)).name
    if isinstance(value, list | tuple):
        return "+".join(_short(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

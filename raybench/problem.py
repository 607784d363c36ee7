"""A problem made concrete: device-resident splits, the forget request drawn, the network's constructor."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybench import streamed
from raybench.data import Pixels, RawData, Request, Source, Split
from raybench.errors import UserError
from raybench.files import check_digest
from raybench.registry import CLASS, DATASETS, MODELS, SCENARIOS
from raybench.seeding import content_hash, numpy_generator
from raybench.space import resolve
from raybench.spec import FILE, Choice, ProblemSpec
from raybench.streamed import Rows, Streamed
from raybench.subset import stratified
from raybench.task import Facts
from raybench.task_kinds import TaskKind, kind_of_model
from raybench.weights import OPTION as WEIGHTS
from raybench.weights import load_weights, without_weights


@dataclass(frozen=True)
class Problem:
    """Splits by name: ``train`` (all that the original sees), ``retain forget validation test``, in class scenarios
    ``validation_forgotten test_forgotten``, with a backdoor ``test_triggered`` (test images of other classes with its
    pattern, labelled with its target).

    ``requests``: the forget and retain set that a method is given, one pair after the other. ``clean``: the training
    split as it was before the scenario changed it. Digests identify what was trained on. ``replaced``: what the request
    changed of D_f itself, ``labels`` or ``images``.
    """

    spec: ProblemSpec
    splits: Mapping[str, Split]
    facts: Facts
    pixels: Pixels
    train_digest: str
    retain_digest: str
    replaced: tuple[str, ...] = ()
    requests: tuple[tuple[Split, Split], ...] = ()
    clean: Split | None = None
    clean_digest: str = ""
    _parts: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kind(self) -> TaskKind:
        """What the model is trained to do."""
        return kind_of_model(self.spec.model.name)

    def build(self) -> nn.Module:
        """A new network (weights from torch's global state: see ``seeding.seeded_globals``)."""
        if WEIGHTS in self.spec.model.options:
            check_digest(self.spec.model.options[WEIGHTS], self.spec.versions.get(WEIGHTS))
        return build_model(self.spec.model, self.facts.num_classes, self.facts.input_shape)

    def part(self, samples: int) -> Mapping[str, Tensor]:
        """Positions int64 in each split of more than ``samples`` samples: the part that a search looks at, the same
        for all trials, as many of each class as its share (``subset.stratified``), no class without one."""
        if samples not in self._parts:
            self._parts[samples] = {
                name: torch.from_numpy(stratified(labels, max(samples, len(np.unique(labels))), self.facts.num_classes))
                for name, labels in ((name, split.targets.cpu().numpy()) for name, split in self.splits.items())
                if len(labels) > samples
            }
        return self._parts[samples]

    def half(self, index: int) -> torch.Tensor:
        """Which of the training samples shadow model ``index`` sees: a random half, bool [n] on the device. A sample
        that stands there several times is in it always or never."""
        samples, which = torch.unique(self.splits["train"].index.cpu(), return_inverse=True)
        order = numpy_generator("half", self.train_digest, index).permutation(len(samples))
        inside = torch.zeros(len(samples), dtype=torch.bool)
        inside[torch.from_numpy(order[: len(samples) // 2])] = True
        return inside[which].to(self.splits["train"].images.device)


def build_model(choice: Choice, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """A network by registered name; options it does not know are a ``UserError``.

    The option ``weights``, which every model has, fills it from a file (``raybench.weights``).
    """
    return _build(choice, num_classes, input_shape)[0]


def _build(choice: Choice, num_classes: int, input_shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """The network, and whether its head is new because that of its weight file is for other classes."""
    entry = MODELS[choice.name]
    family = {"family": choice.name.split(":", 1)[1]} if ":" in choice.name else {}
    options = {key: value for key, value in choice.options.items() if key != WEIGHTS}
    try:
        model: nn.Module = entry.fn(num_classes, input_shape, **family, **options)
    except TypeError as error:
        raise UserError(f"model {choice.name} does not take these options: {error}; see its docstring") from error
    if WEIGHTS not in choice.options:
        return model, False
    return model, load_weights(model, Path(choice.options[WEIGHTS]), choice.name, entry.published)


@functools.lru_cache(maxsize=4)
def _load(name: str, options: str, root: str | None, download: bool) -> tuple[RawData, str]:
    _, colon, path = name.partition(":")
    family = {"family": path} if colon else {}
    raw: RawData = DATASETS[name].fn(Path(root) if root else None, download, **family, **json.loads(options))
    return raw, raw.checksum()


def load_data(choice: Choice, root: str | None, download: bool) -> tuple[RawData, str]:
    """The dataset and its checksum, loaded once per process."""
    return _load(choice.name, json.dumps(dict(choice.options), sort_keys=True), root, download)


def split_validation(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers (train, validation), stratified by label: a pure function of its arguments."""
    rng = numpy_generator("validation", seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held_out[rng.permutation(rows)[: max(1, round(fraction * len(rows)))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def draw_request(spec: ProblemSpec, raw: RawData, train: np.ndarray) -> Request:
    """What the scenario forgets, over the rows ``train``."""
    entry = SCENARIOS[spec.scenario.name]
    params: Any = resolve(entry.params, spec.scenario.options, f"scenario {spec.scenario.name}")
    rng = numpy_generator("draw", spec.scenario.name, spec.draw_seed)
    large = raw.x_train.nbytes > streamed.RESIDENT_BYTES
    images = Rows(raw.x_train, train) if large else raw.x_train[train]
    more = {}
    if "source" in inspect.signature(entry.fn).parameters:
        fine = None if raw.fine is None else raw.fine[train]
        more["source"] = Source(raw.name, train, len(raw.y_train), fine, raw.fine_names)
    if FILE in spec.versions:
        check_digest(spec.scenario.options[FILE], spec.versions[FILE])
    request: Request = entry.fn(images, raw.y_train[train], raw.num_classes, params, rng, **more)
    if large and request.images is not None:
        raise UserError(
            f"scenario {spec.scenario.label} changes images, so dataset {raw.name} must fit "
            f"{streamed.RESIDENT_BYTES / 2**30:g} GiB, got {raw.x_train.nbytes / 2**30:.1f} GiB; "
            "take a part of it (train_size) or smaller images (side)"
        )
    if not 0 < request.forget.sum() < len(train):
        raise UserError(
            f"scenario {spec.scenario.label} must forget some and keep some of {len(train)} training samples, "
            f"got {int(request.forget.sum())} to forget; change its size"
        )
    return request


def make_problem(spec: ProblemSpec, raw: RawData, device: torch.device) -> Problem:
    """Everything on the device, as uint8."""
    train, held_out = split_validation(raw.y_train, spec.validation, spec.split_seed)
    request = draw_request(spec, raw, train)
    labels, images = raw.y_train, raw.x_train
    if request.labels is not None:
        labels = labels.copy()
        labels[train] = request.labels
    if request.images is not None:
        images = images.copy()
        images[train] = request.images
    pixels = Pixels(*(torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (raw.mean, raw.std)))
    x_train = _resident(images, device, spec.checksum if images is raw.x_train else None, "train")
    x_test = _resident(raw.x_test, device, spec.checksum, "test")
    y_train, y_test = (torch.from_numpy(y.astype(np.int64)).to(device) for y in (labels, raw.y_test))

    def rows(where: str, index: np.ndarray) -> Split:
        x, y = (x_test, y_test) if where == "test" else (x_train, y_train)
        return Split(x, y, torch.from_numpy(index.astype(np.int64)).to(device), pixels, raw.augment)

    gone = np.asarray(request.forget_classes, dtype=np.int64)
    # A sample that stands several times in the training set does so in D_f too. Sorted, as ``positions_in`` needs it.
    forget = np.repeat(train[request.forget], request.repeats)
    seen = np.sort(np.concatenate([train[~request.forget], forget])) if request.repeats > 1 else train
    parts = {"train": rows("train", seen), "forget": rows("train", forget)}
    parts["retain"] = rows("train", train[~request.forget])
    for name, index, target in (
        ("validation", held_out, raw.y_train),
        ("test", np.arange(len(raw.y_test)), raw.y_test),
    ):
        forgotten = np.isin(target[index], gone)
        parts[name] = rows(name, index[~forgotten])
        if gone.size:
            parts[f"{name}_forgotten"] = rows(name, index[forgotten])
    kind = SCENARIOS[spec.scenario.name].kind
    facts = Facts(
        dataset=spec.dataset.label,
        model=spec.model.label,
        num_classes=raw.num_classes,
        input_shape=raw.input_shape,
        forget_classes=tuple(int(c) for c in request.forget_classes) if kind == CLASS else (),
        scenario_kind=kind,
        model_options=without_weights(spec.model.options),
    )
    train_digest = _digest(spec, seen, request.labels, request.images)
    retain_digest = _digest(spec, train[~request.forget], *_kept(request))
    requests = [(parts["forget"], parts["retain"])]
    if request.given:
        requests, shown = [], np.zeros(len(train), dtype=bool)
        for mask in request.given:
            shown = shown | mask
            requests.append((rows("train", train[mask]), rows("train", train[~shown])))
    clean = Split(
        _resident(raw.x_train, device, spec.checksum, "train"),
        torch.from_numpy(raw.y_train.astype(np.int64)).to(device),
        parts["train"].index,
        pixels,
        raw.augment,
    )
    if request.trigger is not None:
        parts["test_triggered"] = _triggered(request, raw, parts["test"])
    replaced = tuple(part for part in ("labels", "images") if getattr(request, part) is not None)
    clean_digest = _digest(spec, train, None, None)
    return Problem(
        spec, parts, facts, pixels, train_digest, retain_digest, replaced, tuple(requests), clean, clean_digest
    )


def _triggered(request: Request, raw: RawData, test: Split) -> Split:
    """Test images that are not of the backdoor's target, with its pattern and labelled with the target."""
    assert request.trigger is not None
    device, others = test.labels.device, raw.y_test != request.target
    images = torch.from_numpy(request.trigger(np.asarray(raw.x_test[others]))).to(device)
    labels = torch.full((len(images),), request.target, dtype=torch.int64, device=device)
    return Split(images, labels, torch.arange(len(images), device=device), test.pixels, test.augment)


def _kept(request: Request) -> tuple[np.ndarray | None, np.ndarray | None]:
    keep = ~request.forget
    return (
        request.labels[keep] if request.labels is not None else None,
        request.images[keep] if request.images is not None else None,
    )


def _digest(spec: ProblemSpec, index: np.ndarray, labels: np.ndarray | None, images: np.ndarray | None) -> str:
    """Identifies a training set: problems that train on the same samples share their models."""
    digest = hashlib.sha256(np.ascontiguousarray(index, dtype=np.int64).tobytes())
    for array in (labels, images):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return content_hash([spec.checksum, digest.hexdigest()])


_RESIDENT: OrderedDict[tuple[str, str, str], Tensor] = OrderedDict()  # images on a device, of a few datasets


def _resident(images: np.ndarray, device: torch.device, checksum: str | None, part: str) -> Tensor | Streamed:
    """uint8 images on the device, shared by the problems of a dataset; never written: tasks get copies.

    Those above ``streamed.RESIDENT_BYTES`` stay where they are, and come to the device batch by batch.
    """
    if images.nbytes > streamed.RESIDENT_BYTES:
        return Streamed(images, device)
    if checksum is None:
        return torch.tensor(images, dtype=torch.uint8).to(device)
    key = (checksum, str(device), part)
    if key not in _RESIDENT:
        _RESIDENT[key] = torch.tensor(images, dtype=torch.uint8).to(device)
        while len(_RESIDENT) > 4:
            _RESIDENT.popitem(last=False)
    return _RESIDENT[key]


def facts_of(spec: ProblemSpec, raw: RawData, forget_classes: tuple[int, ...] = ()) -> Facts:
    """The facts that the plan needs to know which methods apply (no tensors are made)."""
    kind = SCENARIOS[spec.scenario.name].kind
    label, options = spec.model.label, without_weights(spec.model.options)
    return Facts(
        spec.dataset.label, label, raw.num_classes, raw.input_shape, forget_classes, kind, model_options=options
    )


def check_problem(spec: ProblemSpec, raw: RawData) -> list[str]:
    """Raise ``UserError`` where this problem cannot be made: bad scenario parameters, a model that does not fit,
    weights of another architecture. Returns what people should know of it."""
    train, _ = split_validation(raw.y_train, spec.validation, spec.split_seed)
    draw_request(spec, raw, train)
    with torch.device("meta"):
        _, new_head = _build(spec.model, raw.num_classes, raw.input_shape)
    if not new_head:
        return []
    return [f"{spec.model.label}: the weights are for other classes, so the head starts anew ({raw.num_classes})"]

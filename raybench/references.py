"""Original and retrained models: trained once per content, stored, checked on load, with their outputs and cost."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from raybench.content_store import ContentStore, state_of
from raybench.data import Split
from raybench.evaluation import FINAL_SPLITS, outputs_of, pack, unpack
from raybench.once import Lease
from raybench.outputs import Outputs
from raybench.passes import Clock, PassCounter, warm_up
from raybench.problem import Problem
from raybench.registry import TRAININGS
from raybench.seeding import content_hash, derive_seed, seeded_globals, torch_generator
from raybench.space import resolve
from raybench.spec import CLEAN, PROTOCOL, SHADOW, STANDARD, Training
from raybench.training import TrainingJob, make_recipe, train_standard

KIND = "references"
ORIGINAL, RETRAINED = "original", "retrained"
MEMORY_MODELS = 12
MEMORY_OUTPUTS = 2**28  # bytes of logits kept per process
WARMUP_SAMPLES = 32


@dataclass(frozen=True)
class Reference:
    """A trained model (clean of hooks, in evaluation mode, never to be changed), its artefacts and its cost.

    ``record``: train_s, cpu_s, forward, backward (sample passes), peak_memory, artefact_bytes, device_name, made_on,
    started_at. ``cached``: it was in the store before this process asked for it.
    """

    key: str
    model: nn.Module
    artefacts: Mapping[str, Tensor]
    record: Mapping[str, Any]
    cached: bool


@dataclass(frozen=True)
class _Order:
    """A reference model to be: what it is trained on, how, and from which seed."""

    problem: Problem
    training: Training
    data: Split
    digest: str  # of the data
    seed: int

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the weights."""
        spec = self.problem.spec
        identity = {
            "protocol": PROTOCOL,
            "model": [spec.network, spec.versions.get("model")],
            "recipe": spec.recipe,
            "training": self.training,
            "data": self.digest,
            "seed": self.seed,
            "threads": spec.threads,
            "device_type": spec.device_type,
        }
        return content_hash(identity, 32)


def _original(problem: Problem, index: int, training: Training) -> _Order:
    words = (index,) if index else ()
    seed = derive_seed("original", problem.spec.train_seed, *words)
    return _Order(problem, training, problem.splits["train"], problem.train_digest, seed)


def _retrained(problem: Problem, index: int, training: Training) -> _Order:
    seed = derive_seed("retrained", problem.spec.train_seed, index)
    return _Order(problem, Training(), problem.splits["retain"], problem.retain_digest, seed)


def _clean(problem: Problem, index: int, training: Training) -> _Order:
    assert problem.clean is not None
    seed = derive_seed("clean", problem.spec.train_seed, index)
    return _Order(problem, Training(), problem.clean, problem.clean_digest, seed)


def _shadow(problem: Problem, index: int, training: Training) -> _Order:
    data = problem.splits["train"].subset(problem.half(index).nonzero().squeeze(1))
    digest = content_hash([problem.train_digest, "half", index])
    return _Order(problem, Training(), data, digest, derive_seed("shadow", problem.spec.train_seed, index))


_ORDERS = {ORIGINAL: _original, RETRAINED: _retrained, CLEAN: _clean, SHADOW: _shadow}


class References:
    """Loads or trains reference models. ``lease(key)`` gives single flight over a cluster."""

    def __init__(self, store: ContentStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._models: OrderedDict[str, Reference] = OrderedDict()
        self._outputs: OrderedDict[str, Outputs] = OrderedDict()
        self._output_bytes: dict[str, int] = {}
        self._made: set[str] = set()  # trained in this process and not yet told by a row

    def just_made(self, key: str) -> bool:
        """Whether this process trained the model; true once, for the first row that tells of it (the row of another
        model may have needed it earlier)."""
        made = key in self._made
        self._made.discard(key)
        return made

    def original(self, problem: Problem, training: Training, index: int = 0) -> Reference:
        """The original model: trained on all of the training split, standard or by an own training. Those from index 1
        on are oracles, of other seeds."""
        return self._get(_original(problem, index, training))

    def retrained(self, problem: Problem, index: int) -> Reference:
        """Retrained model ``index`` (0 is the reference): the standard recipe on the retain set, new weights."""
        return self._get(_retrained(problem, index, Training()))

    def clean(self, problem: Problem, index: int) -> Reference:
        """Clean model: the standard recipe on all of the training split, as it was before the scenario changed it."""
        return self._get(_clean(problem, index, Training()))

    def shadow(self, problem: Problem, index: int) -> Reference:
        """Shadow model ``index``: the standard recipe on a random half of the training split (``Problem.half``)."""
        return self._get(_shadow(problem, index, Training()))

    def outputs(self, problem: Problem, reference: Reference) -> Outputs:
        """Outputs of a reference on all splits of a problem, computed once."""
        return self._outputs_at(problem, reference.key, lambda: reference)

    def pool_outputs(self, problem: Problem, kind: str, index: int, training: Training | None = None) -> Outputs:
        """Outputs of model ``index`` of a kind (ORIGINAL, RETRAINED, CLEAN, SHADOW); where they are stored no model is
        loaded, where they are not it may have to be trained."""
        order = _ORDERS[kind](problem, index, training or Training())
        return self._outputs_at(problem, order.key, lambda: self._get(order))

    def _outputs_at(self, problem: Problem, model_key: str, reference: Callable[[], Reference]) -> Outputs:
        key = content_hash([model_key, problem.spec.id, "outputs"])
        if key not in self._outputs:
            entry = self._store.get("outputs", key)
            if entry is None:
                packed = pack(outputs_of(reference().model, problem.splits, FINAL_SPLITS))
                self._store.put("outputs", key, packed, {"reference": model_key})
            else:
                packed = entry[0]
            self._outputs[key] = unpack(packed)
            self._output_bytes[key] = sum(t.numel() * t.element_size() for t in packed.values())
            while len(self._outputs) > 2 and sum(self._output_bytes.values()) > MEMORY_OUTPUTS:
                self._output_bytes.pop(self._outputs.popitem(last=False)[0])
        self._outputs.move_to_end(key)
        return self._outputs[key]

    def _get(self, order: _Order) -> Reference:
        key = order.key

        if key in self._models:
            return self._models[key]
        found = self._load(order)
        if found is None:
            with self._lease(key):
                found = self._load(order)
                if found is None:
                    self._train(order)
                    self._made.add(key)
                    loaded = self._load(order)
                    assert loaded is not None
                    found = Reference(key, loaded.model, loaded.artefacts, loaded.record, cached=False)
        # As it is: the row of a model that another row's trial needed first must not say that it was cached.
        _remember(self._models, key, found)
        return found

    def _load(self, order: _Order) -> Reference | None:
        problem, training, key = order.problem, order.training, order.key
        entry = self._store.get(KIND, key)
        if entry is None:
            return None
        tensors, record = entry
        device = problem.splits["train"].images.device
        own = TRAININGS[training.kind] if training.kind != STANDARD else None
        with seeded_globals(0):
            if own is not None and own.network is not None:
                model = own.network(problem.build, resolve(own.hparams, training.hparams, training.kind))
            else:
                model = problem.build()
        model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
        model.to(device).eval().requires_grad_(False)
        artefacts = {n[10:]: t.to(device) for n, t in tensors.items() if n.startswith("artefacts.")}
        return Reference(key, model, artefacts, record, cached=True)

    def _train(self, order: _Order) -> None:
        problem, training, seed = order.problem, order.training, order.seed
        device = problem.splits["train"].images.device
        with seeded_globals(0):
            scratch = problem.build().to(device)
        passes = PassCounter(scratch, problem.facts.input_shape)

        def build() -> nn.Module:
            return passes.track(problem.build())

        entry = TRAININGS[training.kind] if training.kind != STANDARD else None
        job = TrainingJob(
            train=order.data.private(torch_generator("order", seed, device=device)),
            recipe=make_recipe(problem.spec.recipe),
            hparams=resolve(entry.hparams, training.hparams, training.kind) if entry else None,
            seed=seed,
            build=build,
            num_classes=problem.facts.num_classes,
            input_shape=problem.facts.input_shape,
            generator=torch_generator("training", seed, device=device),
            device=device,
        )
        warm_up(scratch, first_images(problem))
        clock = Clock(device)
        started_at = time.time()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock.start()
        trained = entry.fn(job) if entry else train_standard(job)
        clock.stop()
        tensors = {f"model.{n}": t for n, t in state_of(trained.model).items()}
        tensors |= {f"artefacts.{n}": t for n, t in trained.artefacts.items()}
        record = {
            "identity": order.key,
            "train_s": clock.wall_s,
            "cpu_s": clock.cpu_s,
            "forward": passes.forward,
            "backward": passes.backward,
            "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            "artefact_bytes": trained.artefact_bytes,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "made_on": platform.node(),
            "started_at": started_at,
        }
        self._store.put(KIND, order.key, tensors, record)


def first_images(problem: Problem) -> Tensor:
    """A few retained images, to warm up with."""
    split = problem.splits["retain"]
    return split.subset(torch.arange(min(WARMUP_SAMPLES, len(split)))).tensors()[0]


def no_lease(key: str) -> contextlib.AbstractContextManager[None]:
    """Single flight within one process needs no lease."""
    return contextlib.nullcontext()


def _remember(cache: OrderedDict[str, Reference], key: str, value: Reference) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > MEMORY_MODELS:
        cache.popitem(last=False)

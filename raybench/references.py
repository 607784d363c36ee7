"""Original and retrained models: trained once per content, stored, checked on load, with their outputs and cost."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raybench.content_store import ContentStore
from raybench.evaluation import FINAL_SPLITS, outputs_of, pack, part_of, unpack
from raybench.once import Lease
from raybench.outputs import Outputs
from raybench.problem import Problem
from raybench.reference_training import ORDERS, Order, clean, original, retrained, shadow, train_order
from raybench.registry import TRAININGS
from raybench.seeding import content_hash, seeded_globals
from raybench.space import resolve
from raybench.spec import STANDARD, Training

KIND = "references"
MEMORY_MODELS = 12
MEMORY_OUTPUTS = 2**28  # bytes of logits kept per process


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


def refuse_shared(order: Order) -> None:
    """A process of a cluster cannot start others: the driver has such models trained before it is asked for them."""
    raise RuntimeError(
        f"the {order.kind} model {order.key} (train_workers: {order.workers}) is not in the store; "
        "raybench retry --failed trains it again"
    )


class References:
    """Loads or trains reference models. ``lease(key)`` gives single flight over a cluster; ``train_shared(order)``
    has several processes train a model and put it into the store."""

    def __init__(
        self, store: ContentStore, lease: Lease, train_shared: Callable[[Order], None] = refuse_shared
    ) -> None:
        self._store = store
        self._lease = lease
        self._train_shared = train_shared
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
        return self._get(original(problem, index, training))

    def retrained(self, problem: Problem, index: int) -> Reference:
        """Retrained model ``index`` (0 is the reference): the standard recipe on the retain set, new weights."""
        return self._get(retrained(problem, index))

    def clean(self, problem: Problem, index: int) -> Reference:
        """Clean model: the standard recipe on all of the training split, as it was before the scenario changed it."""
        return self._get(clean(problem, index))

    def shadow(self, problem: Problem, index: int) -> Reference:
        """Shadow model ``index``: the standard recipe on a random half of the training split (``Problem.half``)."""
        return self._get(shadow(problem, index))

    def outputs(self, problem: Problem, reference: Reference, samples: int | None = None) -> Outputs:
        """Outputs of a reference on all splits of a problem, or on the part of a search, computed once."""
        return self._part_at(problem, reference.key, lambda: reference, samples)

    def pool_outputs(
        self, problem: Problem, kind: str, index: int, training: Training | None = None, samples: int | None = None
    ) -> Outputs:
        """Outputs of model ``index`` of a kind (ORIGINAL, RETRAINED, CLEAN, SHADOW); where they are stored no model is
        loaded, where they are not it may have to be trained."""
        order = ORDERS[kind](problem, index, training or Training())
        return self._part_at(problem, order.key, lambda: self._get(order), samples)

    def _part_at(
        self, problem: Problem, model_key: str, reference: Callable[[], Reference], samples: int | None
    ) -> Outputs:
        """Of the part of a search too there is one object, which remembers what was computed from it."""
        if samples is None:
            return self._outputs_at(problem, model_key, reference)
        key = f"{content_hash([model_key, problem.spec.id, 'outputs'])}/{samples}"
        if key not in self._outputs:
            part = part_of(self._outputs_at(problem, model_key, reference), problem.part(samples))
            self._keep_outputs(key, part)
        self._outputs.move_to_end(key)
        return self._outputs[key]

    def _keep_outputs(self, key: str, outputs: Outputs) -> None:
        self._outputs[key] = outputs
        self._output_bytes[key] = sum(t.numel() * t.element_size() for t in pack(outputs).values())
        while len(self._outputs) > 2 and sum(self._output_bytes.values()) > MEMORY_OUTPUTS:
            self._output_bytes.pop(self._outputs.popitem(last=False)[0])

    def _outputs_at(self, problem: Problem, model_key: str, reference: Callable[[], Reference]) -> Outputs:
        key = content_hash([model_key, problem.spec.id, "outputs"])
        if key not in self._outputs:
            entry = self._store.get("outputs", key)
            if entry is None:
                packed = pack(outputs_of(reference().model, problem.splits, FINAL_SPLITS, problem.kind))
                self._store.put("outputs", key, packed, {"reference": model_key})
            else:
                packed = entry[0]
            self._keep_outputs(key, unpack(packed))
        self._outputs.move_to_end(key)
        return self._outputs[key]

    def _get(self, order: Order) -> Reference:
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

    def _load(self, order: Order) -> Reference | None:
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

    def _train(self, order: Order) -> None:
        if order.workers > 1:
            self._train_shared(order)
        else:
            self._store.put(KIND, order.key, *train_order(order))


def no_lease(key: str) -> contextlib.AbstractContextManager[None]:
    """Single flight within one process needs no lease."""
    return contextlib.nullcontext()


def _remember(cache: OrderedDict[str, Reference], key: str, value: Reference) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > MEMORY_MODELS:
        cache.popitem(last=False)

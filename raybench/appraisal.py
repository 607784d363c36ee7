"""What the metrics of a row may look at besides its outputs: facts of the problem, and the oracle pool behind it.

The pool of a problem: ``oracles`` retrained models beside the reference, as many originals of other seeds, each of them
unlearned by each method (the worlds of U-LiRA and KLoM), and ``shadows``, models of random halves of the data. Models
are shared by all methods and kept in the store; more of them later leave those that are there as they are.
"""

from __future__ import annotations

import dataclasses

from safetensors.torch import load
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.evaluation import extras_of, unpack
from raybench.folder import open_folder
from raybench.outputs import MetricContext, Outputs, Shadow, Worlds
from raybench.problem import Problem
from raybench.reference_training import ORIGINAL, RETRAINED
from raybench.seeding import derive_seed
from raybench.spec import CLEAN, SEARCH, SHADOW, TrialSpec
from raybench.workshop import Workshop


def metric_context(spec: TrialSpec, shop: Workshop, problem: Problem) -> MetricContext:
    """The context of a trial's metrics; the pool is loaded (and what it lacks trained) only when a metric asks."""
    settings, facts, final = shop.settings, problem.facts, spec.phase != SEARCH
    pool = _Pool(spec, shop, problem)
    about = MetricContext(
        num_classes=facts.num_classes,
        held_out="test" if final else "validation",
        task=problem.kind.name,
        forget_classes=facts.forget_classes,
        evaluate_seed=settings.evaluate_seed,
        extras=pool.extras(final),
    )
    if not final:
        return about
    return dataclasses.replace(about, oracles=pool.oracles, shadows=pool.shadows, worlds=pool.worlds)


def kept_outputs(spec: TrialSpec, shop: Workshop) -> Outputs | None:
    """The outputs that a final or an oracle trial kept; None where they are not there."""
    packed = kept_tensors(spec, shop, "outputs")
    return None if packed is None else unpack(packed)


def kept_tensors(spec: TrialSpec, shop: Workshop, name: str) -> dict[str, Tensor] | None:
    """What the trial left as ``artifacts/<trial id>/<name>.safetensors``; None where it is not there."""
    if shop.settings.artifacts is None:
        return None
    try:
        with open_folder(shop.settings.artifacts).open(f"{spec.trial_id}/{name}.safetensors") as file:
            # Cloned: views into the file are not aligned as torch's own memory is.
            return {key: tensor.clone() for key, tensor in load(file.read()).items()}
    except FileNotFoundError:
        return None


class _Pool:
    """The pool as one row may see it."""

    def __init__(self, spec: TrialSpec, shop: Workshop, problem: Problem) -> None:
        self._spec, self._shop, self._problem = spec, shop, problem

    def extras(self, final: bool) -> dict[str, float]:
        """What metrics may need to know of the original model; nothing of the test set unless ``final``."""
        index = self._spec.original_index
        spec, references = self._spec, self._shop.references
        original = references.pool_outputs(self._problem, ORIGINAL, index, spec.training, spec.samples)
        extras = extras_of(original, self._problem.replaced, final)
        if final and self._problem.replaced and "damage_recovery" in self._shop.settings.metrics:
            clean = self._shop.references.pool_outputs(self._problem, CLEAN, 0)
            extras["clean_test_accuracy"] = float(clean["test"].correct.double().mean())
        return extras

    def oracles(self) -> list[Outputs]:
        """The retrained models beside the reference, without the one that the row is about."""
        own = self._spec.unlearn_seed if self._spec.method == "retrain" else None
        return [self._retrained(index) for index in self._indices() if index != own]

    def shadows(self) -> list[Shadow]:
        """The models of random halves, and which samples each of them saw."""
        problem, found = self._problem, []
        where = {n: problem.splits[n].positions_in(problem.splits["train"]) for n in ("forget", "retain")}
        for index in range(1, self._shop.settings.shadows + 1):
            inside = problem.half(index)
            outputs = self._shop.references.pool_outputs(problem, SHADOW, index)
            found.append(Shadow(outputs, {name: inside[at].cpu() for name, at in where.items()}))
        return found

    def worlds(self) -> Worlds:
        """The world that the row belongs to, beside the retrained one."""
        spec, seed = self._spec, self._shop.settings.evaluate_seed
        if spec.variant == CLEAN:
            raise MetricUnavailable("the pool has no world of clean models")
        gold = [self._retrained(index) for index in self._indices()]
        if spec.method == "retrain":  # its world is the gold one: other halves for each row
            return Worlds(gold, gold, derive_seed("gold", seed, spec.unlearn_seed))
        if spec.method == "original":
            references = self._shop.references
            mine = [references.pool_outputs(self._problem, ORIGINAL, i, spec.training) for i in self._indices()]
            return Worlds(mine, gold, seed)
        found = [kept_outputs(spec.in_world(index), self._shop) for index in self._indices()]
        there = [outputs for outputs in found if outputs is not None]
        if len(there) < len(found):
            raise MetricUnavailable(
                f"{len(found) - len(there)} of {len(found)} unlearned models of the pool have no ok row"
            )
        return Worlds(there, gold, seed)

    def _indices(self) -> range:
        return range(1, self._shop.settings.oracles + 1)

    def _retrained(self, index: int) -> Outputs:
        return self._shop.references.pool_outputs(self._problem, RETRAINED, index)


def pool_name(oracles: int, shadows: int) -> str:
    """What stands beside a number that depends on the pool's size: ``oracles=32 shadows=4``."""
    return f"oracles={oracles}" + (f" shadows={shadows}" if shadows else "")

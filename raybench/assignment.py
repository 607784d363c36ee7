"""The task of a trial: what of the problem a method is given, request by request."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
from torch import nn

from raybench.data import Split
from raybench.observer import Observer
from raybench.once import SharedOnce
from raybench.outputs import SplitOutputs
from raybench.passes import Clock, PassCounter
from raybench.problem import Problem
from raybench.references import Reference
from raybench.registry import MethodEntry
from raybench.seeding import torch_generator
from raybench.spec import SEARCH, TrialSpec
from raybench.stopping import stopping_rule
from raybench.task import UnlearningTask
from raybench.training import make_recipe
from raybench.version import PACKAGE
from raybench.workshop import Workshop


@dataclasses.dataclass
class Assignment:
    """Makes the tasks of one trial. ``observer`` draws its curves, or is None."""

    spec: TrialSpec
    shop: Workshop
    problem: Problem
    entry: MethodEntry
    original: Reference
    retrained: Reference
    clock: Clock
    passes: PassCounter
    observer: Observer | None

    def task(self, number: int, before: Any) -> UnlearningTask:
        """The task of request ``number``; ``before`` is what the request before it left, None at the first.

        Every request after the first has random numbers and shared values of its own: another model, other data.
        Raises ``TypeError`` where the request before left no module to start from.
        """
        spec, problem = self.spec, self.problem
        if number and not isinstance(before, nn.Module):
            raise TypeError(f"a request after the first starts from a module, got {type(before).__name__}")
        if number and self.observer is not None:
            self.observer.next_request()
        forget, retain = problem.requests[number]
        again = () if before is None else (number,)
        device = problem.splits["train"].images.device
        words = ("unlearn", spec.method, spec.unlearn_seed, spec.problem.train_seed, *again)
        generator = torch_generator(*words, device=device)
        splits = {"forget": forget, "retain": retain, "validation": problem.splits["validation"]}
        return UnlearningTask(
            original=self.original.model if before is None else before,
            build=problem.build,
            splits=splits,
            needs=self.entry.needs,
            facts=dataclasses.replace(problem.facts, original_kind=spec.training.kind),
            pixels=problem.pixels,
            recipe=make_recipe(spec.problem.recipe),
            generator=generator,
            clock=self.clock,
            passes=self.passes,
            once=self._once(generator, {} if before is None else {"request": number, "model": _digest(before)}),
            positions={n: splits[n].positions_in(problem.splits["train"]) for n in ("forget", "retain")},
            artefacts=self.original.artefacts,
            on_checkpoint=self.observer,
            stop=self._stop(forget),
            loss=problem.kind.loss(generator),
            resources=PACKAGE / "resources" / spec.method,
        )

    def _once(self, generator: Any, more: dict[str, Any]) -> SharedOnce:
        spec, shop = self.spec, self.shop
        identity = {
            "problem": spec.problem.id,
            "original": self.original.key,
            "method": spec.method,
            "version": spec.method_version,
            "device_type": spec.problem.device_type,
        }
        return SharedOnce(
            store=shop.store if shop.settings.use_once else None,
            memory=shop.memory,
            identity=identity | more,
            timing="search" if spec.phase == SEARCH else "final",
            unlearn_seed=spec.unlearn_seed,
            generator=generator,
            clock=self.clock,
            passes=self.passes,
            lease=shop.lease,
        )

    def _stop(self, forget: Split) -> Any:
        if self.spec.stop is None:
            return None
        whole = self.problem.splits["forget"]

        def retrained() -> SplitOutputs:
            found = self.shop.references.outputs(self.problem, self.retrained)["forget"]
            if forget is whole:
                return found
            at = forget.positions_in(whole).cpu()
            return found.at(at)

        return stopping_rule(self.spec.stop, forget, retrained)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()

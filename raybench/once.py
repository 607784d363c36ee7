"""``task.once`` behind the scenes: values shared between trials, their cost charged to each of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from raybench.content_store import ContentStore
from raybench.passes import Clock, PassCounter
from raybench.seeding import content_hash, derive_seed, seeded_globals
from raybench.task import Compute

Entry = tuple[dict[str, Tensor], dict[str, Any]]  # tensors on the CPU, and the record of what they cost
Lease = Callable[[str], AbstractContextManager[None]]  # single flight: one holder of a key at a time
MEMORY_ENTRIES = 16  # values kept in the process, so that a search reads each once


class OnceMemory(OrderedDict[str, Entry]):
    """The most recently used values of this process."""

    def keep(self, key: str, entry: Entry) -> None:
        """Remember an entry, forgetting the oldest beyond the limit."""
        self[key] = entry
        self.move_to_end(key)
        while len(self) > MEMORY_ENTRIES:
            self.popitem(last=False)


class SharedOnce:
    """The ``once`` of one trial.

    ``identity`` is what the value depends on besides its name and inputs (problem, original model, method and
    version, device type). ``timing`` separates costs measured during a search, when other trials share the machine,
    from those of the finals; values are equal. With ``store=None`` (``--no-once``) every call computes: the random
    numbers are the same, so results are too.
    """

    def __init__(
        self,
        *,
        store: ContentStore | None,
        memory: OnceMemory,
        identity: Mapping[str, Any],
        timing: str,
        unlearn_seed: int,
        generator: torch.Generator,
        clock: Clock,
        passes: PassCounter,
        lease: Lease,
    ) -> None:
        self._store = store
        self._memory = memory
        self._identity = identity
        self._kind = f"once-{timing}"
        self._unlearn_seed = unlearn_seed
        self._generator = generator
        self._clock = clock
        self._passes = passes
        self._lease = lease
        self._drew = False  # a random value was used since the innermost ``compute`` began

    def __call__(self, name: str, compute: Compute, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        key = content_hash([self._identity, name, inputs])
        seeded = content_hash([key, self._unlearn_seed])
        if self._store is None:
            return self._compute(seeded, compute)[0]
        with self._clock.paused():  # waiting, loading and storing are off the clock
            entry = self._find(key, seeded)
            if entry is None:
                with self._lease(f"{self._kind}/{key}"):
                    entry = self._find(key, seeded)
                    if entry is None:
                        return self._make(key, seeded, compute)
        tensors, record = entry
        self._drew |= record["random"]
        self._clock.charge(record["wall_s"], record["cpu_s"], record["peak_memory"])
        self._passes.add(record["forward"], record["backward"])
        return {k: v.to(self._generator.device, copy=True) for k, v in tensors.items()}

    def _find(self, key: str, seeded: str) -> Entry | None:
        """The entry under ``key``, or under ``seeded`` where the value is known to be random."""
        assert self._store is not None
        for candidate in (key, seeded):
            cached = f"{self._kind}/{candidate}"
            entry = self._memory.get(cached) or self._store.get(self._kind, candidate)
            if entry is None:
                return None
            self._memory.keep(cached, entry)
            if not entry[1].get("random_marker"):
                return entry
        return None

    def _make(self, key: str, seeded: str, compute: Compute) -> dict[str, Tensor]:
        assert self._store is not None
        tensors, record = self._compute(seeded, compute)
        if record["random"]:
            self._store.put(self._kind, key, {}, {"random_marker": True})
        self._store.put(self._kind, seeded if record["random"] else key, tensors, record)
        return tensors

    def _compute(self, seeded: str, compute: Compute) -> Entry:
        """Compute on the clock. The task's generator and the global state are seeded from the key meanwhile and put
        back, so that hit and miss leave the same random state; whether one was drawn from decides if the value is
        random. Calls of ``once`` inside ``compute`` are part of it."""
        clock, passes, generator = self._clock, self._passes, self._generator
        before_state, outer_drew = generator.get_state(), self._drew
        generator.manual_seed(derive_seed("once", seeded))
        self._drew = False
        running = clock.running
        clock.stop()
        clock.note_peak()
        outer_peak, clock.peak_memory = clock.peak_memory, 0
        start = (clock.wall_s, clock.cpu_s, clock.shared_s, passes.forward, passes.backward)
        with seeded_globals(derive_seed("once globals", seeded)):
            seeded_states = _states(generator)
            clock.start()
            value = compute(generator)
            clock.stop()
            self._drew |= any(not torch.equal(a, b) for a, b in zip(seeded_states, _states(generator), strict=True))
        clock.note_peak()
        generator.set_state(before_state)
        tensors = {"value": value} if isinstance(value, Tensor) else dict(value)
        # Contiguous, as they come back from the store: other strides may take another kernel, with other last bits.
        tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        record = {
            "wall_s": clock.wall_s - start[0],
            "cpu_s": clock.cpu_s - start[1],
            "forward": passes.forward - start[3],
            "backward": passes.backward - start[4],
            "peak_memory": clock.peak_memory,
            "random": self._drew,
        }
        clock.shared_s = start[2] + record["wall_s"]
        clock.peak_memory = max(outer_peak, clock.peak_memory)
        self._drew |= outer_drew
        if running:
            clock.start()
        return tensors, record


def _states(generator: torch.Generator) -> list[Tensor]:
    """The states of all that a computation may draw from."""
    states = [generator.get_state(), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(generator.device)] if generator.device.type == "cuda" else states

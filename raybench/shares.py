"""Which share of a GPU each trial takes: what the spec says, or what its measured footprint needs."""

from __future__ import annotations

from raybench.footprint import Footprint, Footprints, footprint_key, share_of
from raybench.spec import TrialSpec


class Shares:
    """The driver's view of the footprints in the store.

    ``gpu``: of every trial, as the spec says it. With ``footprints`` a share is measured instead, for devices of
    ``device_bytes`` (the smallest of the cluster), and a trial of an unknown footprint takes a whole device. ``both``:
    trials are pinned to CPU or to CUDA in one run, and those on CPU take nothing.
    """

    def __init__(
        self, gpu: float, footprints: Footprints | None = None, device_bytes: int = 0, both: bool = False
    ) -> None:
        self._gpu = gpu
        self._both = both
        self._footprints = footprints
        self._device_bytes = device_bytes
        self._keys: dict[str, str] = {}  # by trial id: the driver asks of all waiting trials again and again
        self._found: dict[str, Footprint | None] = {}  # by key

    @property
    def vary(self) -> bool:
        """Whether trials take different shares."""
        return self._both or self._footprints is not None

    def measured(self, spec: TrialSpec) -> bool:
        """Whether the trial's share is measured."""
        return self._footprints is not None and not self._idle(spec)

    def of(self, spec: TrialSpec) -> float:
        """The share that the trial takes now."""
        if self._idle(spec):
            return 0.0
        if self._footprints is None:
            return self._gpu
        footprint = self._known(self._footprints, spec)
        return 1.0 if footprint is None else share_of(footprint, self._device_bytes)

    def to_measure(self, spec: TrialSpec) -> str:
        """The key of a footprint that nobody knows yet: one such trial runs at a time, alone. Empty where it is known
        or does not matter."""
        if self._footprints is None or self._idle(spec) or self._known(self._footprints, spec) is not None:
            return ""
        return self._key(spec)

    def learned(self, spec: TrialSpec) -> None:
        """A trial has ended; if its footprint was not known, it may be now. A known one stays what it is until the
        next run, so that lanes of one share stay lanes of one share."""
        if self.to_measure(spec):
            del self._found[self._key(spec)]

    def too_little(self, spec: TrialSpec, share: float) -> None:
        """A trial ran out of memory within ``share``: the next ones of its kind get more."""
        if self._footprints is not None and 0 < share < 1:
            self._footprints.enlarge(spec, share, self._device_bytes)
            self._found.pop(self._key(spec), None)

    def _idle(self, spec: TrialSpec) -> bool:
        """Whether the trial leaves the GPUs alone."""
        return self._both and spec.problem.device_type == "cpu"

    def _known(self, footprints: Footprints, spec: TrialSpec) -> Footprint | None:
        key = self._key(spec)
        if key not in self._found:
            self._found[key] = footprints.get(spec)
        return self._found[key]

    def _key(self, spec: TrialSpec) -> str:
        if spec.trial_id not in self._keys:
            self._keys[spec.trial_id] = footprint_key(spec)
        return self._keys[spec.trial_id]

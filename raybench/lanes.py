"""Which lanes of a search stage may run at once, when trials take different shares of a GPU. Pure arithmetic.

A lane is a warm worker with a share of its own; it runs one trial after the other. Changing its share means another
process, so a lane prefers trials of its share, and ends for others only when these have waited for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0  # a worker takes some ten seconds to start: worth it after a minute
MARGIN = 1e-6


class Lanes:
    """Lanes on ``gpus`` devices, at most ``slots`` of them; a share below 1 lies on one device, in the fullest one that
    has room, as Ray does it. ``now`` is a clock in seconds."""

    def __init__(
        self, gpus: float, slots: int, patience_s: float = PATIENCE_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots = slots
        self._free = [1.0] * int(gpus + MARGIN)  # of each device
        self._on: dict[str, list[int]] = {}  # lane -> its devices
        self._patience_s = patience_s
        self._now = now
        self._open: dict[str, float] = {}  # lane -> share
        self._since: dict[float, tuple[float, bool]] = {}  # share that found no room -> since when, for want of a GPU
        self._pending: dict[str, float] = {}  # lane that has no worker yet -> since when

    def room(self, share: float) -> bool:
        """Whether a lane of this share fits beside those that are open. A larger share that has waited for long, for
        room or for a worker, goes first: what comes free until then stays free."""
        gpu_full = share > 0 and not self._devices(share)
        if gpu_full or len(self._open) >= self.slots:
            since, _ = self._since.get(share, (self._now(), True))
            self._since[share] = since, gpu_full
            return False
        return all(share >= waiting or (share == 0 and for_gpu) for waiting, for_gpu in self._overdue())

    def open(self, lane: str, share: float) -> None:
        """A lane begins."""
        self._open[lane] = share
        self._on[lane] = self._devices(share)
        for device in self._on[lane]:
            self._free[device] -= min(share, 1.0)
        self._since.pop(share, None)

    def close(self, lane: str) -> None:
        """A lane has ended."""
        share = self._open.pop(lane, 0.0)
        for device in self._on.pop(lane, ()):
            self._free[device] += min(share, 1.0)
        self._pending.pop(lane, None)

    def share(self, lane: str) -> float:
        """The share of an open lane."""
        return self._open[lane]

    def without_worker(self, lanes: set[str]) -> None:
        """Which open lanes still wait for a worker: free pieces of several devices do not make a whole one."""
        self._pending = {lane: self._pending.get(lane, self._now()) for lane in lanes if lane in self._open}

    def must_end(self, lane: str) -> bool:
        """Whether the lane has to make room when its trial ends: another share has waited for long."""
        own = self._open[lane]
        return any(share != own and (own > 0 or not for_gpu) for share, for_gpu in self._overdue())

    def late(self) -> set[float]:
        """The shares that have waited for long."""
        return {share for share, _ in self._overdue()}

    def served(self, wanted: set[float]) -> None:
        """Only these shares still have trials that wait for a lane."""
        self._since = {share: since for share, since in self._since.items() if share in wanted}

    def _devices(self, share: float) -> list[int]:
        """Devices with room for a share; empty where there are none, or none are needed."""
        fitting = [i for i, free in enumerate(self._free) if free >= min(share, 1.0) - MARGIN]
        count = max(1, round(share)) if share else 0
        return sorted(fitting, key=lambda i: self._free[i])[:count] if len(fitting) >= count else []

    def _overdue(self) -> list[tuple[float, bool]]:
        """The shares that have waited for long, and whether for want of a GPU alone: what takes none is not in the
        way then. A lane without a worker may want a core; if lanes that ended for it did not help, it does not."""
        now, patience = self._now(), self._patience_s
        waiting = [(share, since, for_gpu) for share, (since, for_gpu) in self._since.items()]
        waiting += [(self._open[lane], at, now - at >= 2 * patience) for lane, at in self._pending.items()]
        return [(share, for_gpu) for share, since, for_gpu in waiting if now - since >= patience]

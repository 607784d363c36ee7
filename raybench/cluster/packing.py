"""Hands trials with different shares of a GPU to the lanes of a search stage."""

from __future__ import annotations

from collections.abc import Sequence

from raybench.lanes import Lanes
from raybench.ledger import Request
from raybench.shares import Shares


class Packing:
    """``shares`` says what a trial takes, ``lanes`` what has room. Footprints that nobody knows come first: one trial
    each with a GPU to itself, while the others of its kind wait to learn how little they need."""

    def __init__(self, shares: Shares, lanes: Lanes) -> None:
        self.shares = shares
        self.lanes = lanes
        self._measuring: dict[str, str] = {}  # lane -> key of the footprint that its trial measures

    def share(self, lane: str) -> float:
        """The share of an open lane."""
        return self.lanes.share(lane)

    def choose(self, lane: str, is_open: bool, waiting: Sequence[Request]) -> Request | None:
        """The next request of a lane, or the first one of a lane that it opens; None where the lane has to end, or has
        no room. ``waiting``: all that could run now, what should come first first."""
        keys = {r.spec.trial_id: self.shares.to_measure(r.spec) for r in waiting}
        busy = set(self._measuring.values())
        can = [r for r in waiting if keys[r.spec.trial_id] not in busy]
        self.lanes.served({self.shares.of(r.spec) for r in can})
        unknown = [r for r in can if keys[r.spec.trial_id]]
        known = [] if is_open and self.lanes.must_end(lane) else [r for r in can if not keys[r.spec.trial_id]]
        late = self.lanes.late()
        known.sort(key=lambda r: self.shares.of(r.spec) not in late)
        for request in [*unknown, *known]:
            share = self.shares.of(request.spec)
            if not (share == self.lanes.share(lane) if is_open else self.lanes.room(share)):
                continue
            if not is_open:
                self.lanes.open(lane, share)
            if key := keys[request.spec.trial_id]:
                self._measuring[lane] = key
            return request
        if is_open:
            self.lanes.close(lane)
        return None

    def ended(self, lane: str, request: Request, memory: bool) -> None:
        """A lane's trial has ended, with a row or without one; ``memory``: it ran out of memory."""
        self._measuring.pop(lane, None)
        if memory:
            self.shares.too_little(request.spec, self.lanes.share(lane))
        self.shares.learned(request.spec)

    def close(self, lane: str) -> None:
        """A lane has ended, however that came."""
        self.lanes.close(lane)
        self._measuring.pop(lane, None)

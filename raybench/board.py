"""All searches of an experiment under way at once: what may run now, and what a finished trial makes possible."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Any

from raybench.ledger import Ledger, Request, Row
from raybench.plan import Plan, line_variant
from raybench.rounds import Ask, Search, Told, points_of_round
from raybench.seeding import to_json
from raybench.selection import settings_of

Record = Callable[[list[dict[str, Any]]], None]


class Board:
    """All searches at once: hands out the trials that may run now and opens a round when the one before is complete.

    ``record`` is called with the searches-table records of a round before any of its trials is handed out, so that
    a resumed run finds the same settings.
    """

    def __init__(self, plan: Plan, ledger: Ledger, ask: Ask, record: Record) -> None:
        self.plan = plan
        self._ledger = ledger
        self._ask = ask
        self._record = record
        listed = plan.searches()
        self._searches = list({search.id: search for search in listed}.values())  # lines may share one
        self._waiting: dict[str, list[Request]] = {s.id: [] for s in self._searches}  # handed out later
        self._open: dict[str, set[str]] = {s.id: set() for s in self._searches}  # ids this round still needs
        self._wants: dict[str, list[Search]] = {}  # trial id -> the searches whose open round needs it
        self._round: dict[str, int] = {s.id: 0 for s in self._searches}
        self._running: set[str] = set()
        self._place = {s.id: place for place, s in enumerate(self._searches)}
        self._ready: list[tuple[int, int, int]] = []  # a heap of (round, -waiting, place), old entries among them
        self._undone = len(self._round)
        self._count = 0
        self.total = sum(s.plan.trials * len(s.plan.seeds) for s in listed)
        for search in self._searches:
            self._advance(search)

    @property
    def done(self) -> bool:
        """Whether every search has spent its budget."""
        return not self._undone

    @property
    def waiting(self) -> int:
        """How many trials could be handed out now."""
        return self._count

    def next(self) -> Request | None:
        """A trial that may run now, from the least advanced search; None while all wait for a round to end."""
        while self._ready:
            number, waiting, place = heapq.heappop(self._ready)
            search = self._searches[place]
            requests = self._waiting[search.id]
            if not requests or (number, waiting) != (self._round[search.id], -len(requests)):
                continue  # an entry from before
            request = requests.pop(0)
            self._count -= 1
            self._offer(search)
            if not self._under_way(request):
                self._running.add(request.spec.trial_id)
                return request
        return None

    def ready(self) -> list[Request]:
        """The trials that could run now, those of the least advanced searches first."""
        found: list[Request] = []
        for search in sorted(self._searches, key=lambda s: (self._round[s.id], -len(self._waiting[s.id]))):
            self._drop_under_way(search)
            found += self._waiting[search.id]
        return found

    def take(self, request: Request) -> None:
        """Have this one of ``ready`` run, out of turn."""
        trial_id = request.spec.trial_id
        self._running.add(trial_id)
        for search in self._wants[trial_id]:
            self._drop_under_way(search)

    def _drop_under_way(self, search: Search) -> None:
        """Two searches may want the same trial: the second one has it from the first."""
        requests = self._waiting[search.id]
        left = [r for r in requests if not self._under_way(r)]
        if len(left) < len(requests):
            self._count -= len(requests) - len(left)
            self._waiting[search.id] = left
            self._offer(search)

    def _under_way(self, request: Request) -> bool:
        return self._ledger.done(request.spec.trial_id) or request.spec.trial_id in self._running

    def finished(self, row: Row) -> None:
        """Take the row of a trial; rounds that it completes are closed and the next ones opened."""
        trial_id = row["trial_id"]
        self._ledger.rows[trial_id] = row
        self._running.discard(trial_id)
        for search in self._wants.pop(trial_id, ()):
            self._open[search.id].discard(trial_id)
            if not self._open[search.id]:
                self._round[search.id] += 1
                self._advance(search)

    def _offer(self, search: Search) -> None:
        """Let a search be found by how far it is and how much of it waits; equal ones in the order of the plan."""
        waiting = len(self._waiting[search.id])
        if waiting:
            heapq.heappush(self._ready, (self._round[search.id], -waiting, self._place[search.id]))

    def _advance(self, search: Search) -> None:
        """Open rounds until one has trials to run."""
        while self._round[search.id] < search.rounds:
            number = self._round[search.id]
            requests = self._requests(search, number)
            missing = self._ledger.missing(requests)
            if missing:
                self._open[search.id] = {request.spec.trial_id for request in missing}
                for trial_id in self._open[search.id]:
                    self._wants.setdefault(trial_id, []).append(search)
                self._count += len(missing) - len(self._waiting[search.id])
                self._waiting[search.id] = missing
                self._offer(search)
                return
            self._round[search.id] += 1
        self._undone -= 1

    def _requests(self, search: Search, number: int) -> list[Request]:
        table, size = self._ledger.table, search.size_of(number)
        first = search.plan.seeds[0]
        known = {i: table[key][1] for i in range(size) if (key := (search.id, number, i, first)) in table}
        if len(known) == size:
            return [r for i in range(size) for r in self.plan.search_requests(search, known[i])]
        earlier = [s for s in settings_of(search, self._ledger) if s.round < number]
        told = [Told(s.point, s.values) for s in earlier]
        requests, records = [], []
        asked = points_of_round(search, number, told, self._ask)
        for index in range(size):
            point = known.get(index, asked[index])  # a longer budget completes a round that was cut short
            for request in self.plan.search_requests(search, point):
                seed = request.spec.problem.train_seed
                requests.append(request)
                table[search.id, number, index, seed] = (request.spec.trial_id, point)
                records.append(_table_record(search, number, index, seed, request, point))
        self._record(records)
        return requests


def _table_record(
    search: Search, number: int, index: int, seed: int, request: Request, point: Mapping[str, Any]
) -> dict[str, Any]:
    line = {
        "dataset": search.cell.dataset.label,
        "model": search.cell.model.label,
        "scenario": search.cell.scenario.label,
        "method": search.candidate.method,
        "variants": [line_variant(search.candidate, rule, search.plan) for rule in search.plan.select],
    }
    return {
        "search_id": search.id,
        "line": to_json(line),
        "round": number,
        "index": index,
        "train_seed": seed,
        "trial_id": request.spec.trial_id,
        "hparams": to_json(point),
    }

"""A trial on its way to a row: how often it was tried, and what is to blame when its worker does not answer."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from raybench.cluster.aggregator import last_line
from raybench.cluster.trial_actor import Outcome
from raybench.ledger import Request
from raybench.logs import log_event
from raybench.trial import OUT_OF_MEMORY

TRIES = 3  # a trial whose worker dies, or that is handed back, so many times becomes a failed row
LOW = "low on memory"  # in what Ray says of a worker that its memory monitor ended
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
)


@dataclass
class Job:
    """``reason``: why it has no row yet. ``alone``: it ran out of memory, and is to be tried once more by itself."""

    request: Request
    tries: int = 0
    reason: str = ""
    alone: bool = False

    @property
    def spent(self) -> bool:
        """Whether it is set aside: it would go on killing workers."""
        return self.tries >= TRIES

    def lost(self, error: Exception | str | None) -> None:
        """Its worker died. Not its fault where the node was drained: that is no try."""
        text = last_line(error) if isinstance(error, Exception) else (error or "")
        if isinstance(error, ray.exceptions.OutOfMemoryError) or LOW in str(error):
            self.alone, self.reason = True, f"{OUT_OF_MEMORY}: Ray ended its worker because the node ran {LOW}"
        elif not getattr(error, "preempted", False):
            self.tries += 1
            self.reason = f"worker died in {self.tries} of {self.tries} tries"
        log_event("worker lost", self.request.spec.trial_id, tries=self.tries, reason=self.reason or text, ray=text)
        if not self.spent:
            self.request = self.request.again()

    def handed_back(self, outcome: Outcome) -> None:
        """Its worker could not run it: it lacks the device, or the memory while others run beside it."""
        self.reason, self.alone = outcome.handed_back, outcome.memory
        log_event("handed back", self.request.spec.trial_id, tries=self.tries, reason=self.reason)
        if outcome.memory:
            self.request = self.request.again()
        else:
            self.tries += 1

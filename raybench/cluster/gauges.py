"""What a run tells Ray's metrics (Prometheus, the dashboard): few numbers, few tags, never a trial id."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from raybench.ledger import Row
from raybench.serial import Load

TAG = "experiment"


class Gauges:
    """``raybench_trials`` by phase and status, ``raybench_rows``, and the present ``raybench_running``,
    ``raybench_waiting``, ``raybench_slots`` and ``raybench_occupancy`` (running / slots). Ray's agent on the driver's
    node publishes them with its next report, seconds later."""

    def __init__(self, experiment: str) -> None:
        self._tags = {TAG: experiment}
        names = (TAG, "phase", "status")
        self._trials = Counter("raybench_trials", "trials that have ended", names)
        self._rows = Counter("raybench_rows", "rows that are durable", (TAG,))
        self._now = {
            name: Gauge(f"raybench_{name}", meaning, (TAG,))
            for name, meaning in (
                ("running", "trials under way"),
                ("waiting", "trials that could run now and have no slot"),
                ("slots", "trials that can run at once"),
                ("occupancy", "share of the slots that run a trial"),
            )
        }

    def count(self, row: Row) -> None:
        """A row came."""
        self._rows.inc(1, self._tags)
        self._trials.inc(1, {**self._tags, "phase": str(row["phase"]), "status": str(row["status"])})

    def show(self, load: Load) -> None:
        """How busy the executor is now."""
        occupancy = load.running / load.slots if load.slots else 0.0
        values = {"running": load.running, "waiting": load.waiting, "slots": load.slots, "occupancy": occupancy}
        for name, value in values.items():
            self._now[name].set(value, self._tags)

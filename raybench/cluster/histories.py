"""Collecting training histories over the cluster: one Ray task per network, warm workers, nothing trained twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch

from raybench.cluster.aggregator import last_line
from raybench.cluster.session import Session
from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import KIND, HistoryRun, collect
from raybench.problem import load_data
from raybench.seeding import canonical

TRIES = 3  # a run whose worker dies so many times is given up
NAMED = 3  # failures that a message spells out


def collect_histories(
    runs: Sequence[HistoryRun],
    folder: str,
    session: Session,
    root: str | None = None,
    download: bool = False,
    finished: Callable[[HistoryRun, str], None] = lambda run, key: None,
) -> list[str]:
    """Train every run whose history is not in the store at ``folder``; returns all keys, in the order of ``runs``.

    One CPU and one thread a run, so a history does not depend on what it was trained beside. A history appears by one
    rename when it is whole: after any kill the same call goes on, and a second one trains nothing.
    ``finished(run, key)`` is called as histories come in. ``UserError`` names the runs that failed, after all others
    are done.
    """
    fit = session.fit({"cpu": 1.0})
    session.check(folder, folder)
    store = ContentStore(folder)
    store.probe()
    keys = [run.key(load_data(run.dataset, root, download)[1]) for run in runs]
    missing = {key: run for key, run in zip(keys, runs, strict=True) if not store.has(KIND, key)}
    waiting, failed = deque(missing.values()), []
    flying: dict[Any, HistoryRun] = {}
    task = ray.remote(_train).options(num_cpus=1, max_retries=TRIES - 1)
    while waiting or flying:
        while waiting and len(flying) < fit.slots:
            run = waiting.popleft()
            flying[task.remote(canonical(run), folder, root, download)] = run
        ready, _ = ray.wait(list(flying), num_returns=1)
        run = flying.pop(ready[0])
        try:
            finished(run, ray.get(ready[0]))
        except ray.exceptions.RayError as error:
            failed.append(f"{run.model.label} at {run.lr:g} ({last_line(error)})")
    if failed:
        named = "; ".join([*failed[:NAMED], *(["..."] if len(failed) > NAMED else [])])
        raise UserError(
            f"every history must be trained, {len(failed)} of {len(keys)} were not: {named}; mend that and run it again"
        )
    return keys


def _train(run: Mapping[str, Any], folder: str, root: str | None, download: bool) -> str:
    """On a worker. The next run in the same process finds the dataset loaded."""
    torch.set_num_threads(1)
    return collect(HistoryRun.from_dict(run), ContentStore(folder), root, download)

"""``raybench retry --failed``: failed trials get another attempt; a search forgets the rounds after a retried row."""

from __future__ import annotations

import dataclasses

from raybench.facts import kept_spec
from raybench.leaderboard.store import ResultStore
from raybench.run import Options, Outcome, run


def retry_failed(results: str, options: Options) -> Outcome:
    """Run the failed trials of a results folder once more, then whatever the plan still lacks."""
    return run(kept_spec(results), options=dataclasses.replace(options, results=results), redo=forget_failed)


def forget_failed(store: ResultStore) -> dict[str, int]:
    """Trial id -> number of the next attempt, for every failed trial. Called while no other driver runs.

    A sampler was told that the trial failed; with its row made new, the later rounds of that search are asked again,
    so they are dropped from the searches table. Their rows stay.
    """
    trials = store.trials(columns=["trial_id", "attempt", "status", "phase"])
    failed = trials[trials["status"] == "failed"]
    redo = {record["trial_id"]: record["attempt"] + 1 for record in failed.to_dict("records")}
    first: dict[str, int] = {}
    for record in store.searches().to_dict("records"):
        if record["trial_id"] in redo:
            search = str(record["search_id"])
            first[search] = min(first.get(search, 10**9), int(record["round"]))
    if first:
        store.drop_searches(lambda record: record["round"] > first.get(record["search_id"], 10**9))
    return redo

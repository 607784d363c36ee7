"""``raybench retry --failed``: failed trials get another attempt; a search forgets the rounds after a retried row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from raybench.errors import UserError
from raybench.leaderboard.store import ResultStore
from raybench.run import Options, Outcome, run


def retry_failed(results: str, options: Options) -> Outcome:
    """Run the failed trials of a results folder once more, then whatever the plan still lacks.

    A sampler was told that the trial failed; with its row made new, the later rounds of that search are asked again.
    """
    folder = Path(results)
    spec = folder / "spec.yaml"
    if not spec.is_file():
        raise UserError(f"retry needs a results folder with a spec.yaml, got {results}; check the path")
    store = ResultStore(folder)
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
    raw = yaml.safe_load(spec.read_text())
    return run(raw, options=dataclasses.replace(options, results=str(folder)), redo=redo)

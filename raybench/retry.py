"""``raybench retry --failed``: failed trials get another attempt; a search forgets the rounds after a retried row."""

from __future__ import annotations

import dataclasses

from raybench.errors import UserError
from raybench.folder import open_folder
from raybench.leaderboard.store import ResultStore
from raybench.run import Options, Outcome, run
from raybench.spec_file import SPEC, decode_spec


def retry_failed(results: str, options: Options) -> Outcome:
    """Run the failed trials of a results folder once more, then whatever the plan still lacks."""
    try:
        with open_folder(results).open(SPEC) as file:
            raw = decode_spec(file.read(), f"{results}/{SPEC}")
    except FileNotFoundError as error:
        raise UserError(f"retry must have a results folder with a {SPEC}, got {results}; check the path") from error
    return run(raw, options=dataclasses.replace(options, results=results), redo=forget_failed)


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

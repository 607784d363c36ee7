"""Ray Tune's OptunaSearch as the asker of a round."""

from __future__ import annotations

from typing import Any

from ray.tune.search.optuna import OptunaSearch

from raybench.rounds import STUDY, Round, Search

METRICS = ("distance", "passes")


def ask_optuna_search(search: Search, opened: Round) -> list[dict[str, Any]]:
    """Ask OptunaSearch for the settings of a round, on the study that ``rounds.open_round`` prepared.

    The same settings as ``rounds.ask_optuna`` (tested): the storage holds what earlier rounds told and what is
    enqueued, the sampler carries the seed.
    """
    searcher = OptunaSearch(
        space=dict(opened.space),
        metric=list(METRICS),
        mode=["min", "min"],
        sampler=opened.sampler,
        storage=opened.storage,
        study_name=STUDY,
    )
    points = [searcher.suggest(f"{search.id}-{index}") for index in range(search.plan.round_size)]
    assert all(point is not None for point in points)
    return [dict(point) for point in points if point is not None]

"""What a spec may ask of a model that is no classifier: methods, scenarios and settings that serve its task."""

from __future__ import annotations

from collections.abc import Iterable

from raybench.errors import UserError
from raybench.registry import CLASSIFICATION, METHODS, METRICS, MODELS


def check_task(
    model: str, methods: Iterable[str], *, objective: str, stops: bool, corrupts: bool, train_workers: int
) -> None:
    """Raise ``UserError`` for what the task of ``model`` rules out. ``objective``: the metric that a search minimises;
    ``stops``: a stopping rule is asked for; ``corrupts``: the scenario changes labels or images."""
    task = MODELS[model].task
    for method in methods:
        if task not in METHODS[method].tasks:
            serving = [entry.name for entry in METHODS if task in entry.tasks]
            raise UserError(
                f"a method for model {model} must serve {task}, got {method}, which is for "
                f"{' and '.join(sorted(METHODS[method].tasks))}; use {', '.join(serving)}"
            )
    if task not in METRICS[objective].tasks:
        raise UserError(f"search.objective must be distance for model {model}, got one by {objective}; change it")
    if task == CLASSIFICATION:
        return
    if stops:
        raise UserError(f"a stopping rule needs a classifier, got model {model}; leave stop out")
    if corrupts:
        raise UserError(
            f"a scenario for model {model} must leave labels and images as they are, got one that changes them; "
            "use class, subclass, random or index"
        )
    if train_workers > 1:
        raise UserError(f"train_workers must be 1 for model {model}, got {train_workers}; lower it")

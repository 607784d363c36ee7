"""raybench: which machine-unlearning method forgets best, at what cost, on my data and my model?

>>> import raybench as rb
>>> outcome = rb.run("quickstart", results="out")      # doctest: +SKIP
>>> lb, trials = rb.load_leaderboard("out"), rb.load_trials("out")      # doctest: +SKIP
>>> rb.pareto(lb, cost="unlearn_s", loss="distance")      # doctest: +SKIP
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raybench.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from torch import nn

    from raybench.run import Outcome

__all__ = ["__version__", "compare", "load_leaderboard", "load_model", "load_trials", "pareto", "run"]


def run(
    spec: str | Mapping[str, Any], results: str | None = None, settings: Sequence[str] = (), **options: Any
) -> Outcome:
    """Run an experiment, or go on with it: what ``raybench run`` does.

    Args:
        spec: a shipped spec by name, the path of a YAML file, or a spec as plain values.
        results: the results folder; default ``./raybench-runs/<name of the spec>``.
        settings: overrides such as ``"search.trials=4"``.
        options: the fields of ``raybench.run.Options``: store, data, download, serial, address, slots, ...

    Returns:
        An ``Outcome``: ``results`` (folder), ``ran``, ``trained``, ``bad`` (failed trials, one line each).

    Raises:
        raybench.errors.UserError: bad input, before anything is trained.
    """
    from raybench.run import Options, run

    return run(spec, options=Options(results=results, **options), settings=settings)


_run = run


def load_trials(directory: str | os.PathLike[str], attempts: bool = False) -> pd.DataFrame:
    """Every trial of a results folder, each id once, search trials and references too.

    Args:
        directory: the results folder, a path or a URL such as ``s3://bucket/prefix``.
        attempts: all attempts of a trial that ran more than once, not only the last.

    Returns:
        One row per trial: what it was (``method``, ``hparams`` as JSON, seeds, ``phase``), how it ended (``status``,
        ``reason``), seconds (``unlearn_s``), sample passes, and of every metric ``<m>``, ``<m>_retrained`` and
        ``<m>_gap`` (fractions, except where the metric says another unit).

    Raises:
        raybench.errors.UserError: no results there, or rows of a newer version.
    """
    from raybench.leaderboard.query import load_trials

    return load_trials(directory, attempts)


def load_leaderboard(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """One line per dataset, model, scenario, method and variant: means, intervals, costs, best hyperparameters.

    Args:
        directory: the results folder, a path or a URL such as ``s3://bucket/prefix``.

    Returns:
        ``<m>`` the mean over train seeds of a metric (a fraction, except where it says another unit), ``<m>_lo`` and
        ``<m>_hi`` its 95 % interval, ``<m>_retrained``, ``<m>_gap``, ``<m>_floor``; ``unlearn_s``, ``tuning_s`` in
        seconds; ``rank_group``, ``on_pareto_front``, ``unresolved``, ``gates`` (JSON), ``n``.

    Raises:
        raybench.errors.UserError: no results there, or rows of a newer version.
    """
    from raybench.leaderboard.query import load_leaderboard

    return load_leaderboard(directory)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The network that ``raybench export`` wrote, with its weights, in evaluation mode.

    Args:
        path: the safetensors file.

    Returns:
        Normalised images float32 [n, C, H, W] -> logits [n, K]; ``model.raybench`` says what it is and how its input is
        normalised (see ``raybench.model_file.load_model``).

    Raises:
        raybench.errors.UserError: no such file, or not one that ``raybench export`` wrote.
    """
    from raybench.model_file import load_model

    return load_model(path)


def pareto(leaderboard: pd.DataFrame, cost: str = "unlearn_s", loss: str = "distance") -> pd.DataFrame:
    """The lines that no other line of the same problem beats in both ``cost`` and ``loss`` (smaller is better).

    Args:
        leaderboard: what ``load_leaderboard`` gives; lines that fail a sanity gate, and references, are left out.
        cost: a column such as ``unlearn_s`` (seconds), ``retrain_share`` or ``tuning_s``.
        loss: a column such as ``distance``, or ``<m>_gap`` taken absolutely by you.

    Returns:
        A part of the lines, all columns kept.

    Raises:
        raybench.errors.UserError: a column that the leaderboard does not have.
    """
    from raybench.leaderboard.query import pareto

    return pareto(leaderboard, cost, loss)


def compare(
    a: str | os.PathLike[str] | pd.DataFrame,
    b: str | os.PathLike[str] | pd.DataFrame,
    metrics: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """What changed from ``a`` to ``b`` beyond noise, one record per line that both have and metric.

    Args:
        a: a results folder, or trials as ``load_trials`` gives them.
        b: likewise; ``difference`` is b minus a.
        metrics: only these (default: all that both have).
        alpha: chance of a false alarm over all lines and metrics together (Holm).

    Returns:
        Records with ``verdict``: ``difference``, ``no difference``, ``under the floor`` or ``too few seeds``; see
        ``raybench.leaderboard.differences``.

    Raises:
        raybench.errors.UserError: nothing to compare, fewer than three train seeds a side, different protocols.
    """
    from raybench.leaderboard.differences import compare

    return compare(a, b, metrics, alpha)


class _CallableModule(ModuleType):
    """``raybench/run.py`` when it stands in the place of the function ``run``: calling it is calling the function."""

    __call__ = staticmethod(_run)


class _Package(ModuleType):
    """The import system puts the module ``raybench.run`` where the function of that name was; both are to work."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "run" and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

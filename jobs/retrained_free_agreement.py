"""How well the retrained-free objective orders the settings of a search as the distance to the retrained model does.

    python jobs/retrained_free_agreement.py results/*

Per folder and kind of request: Kendall's tau over the settings of each search (a line on one seed), and what choosing
by the objective costs: the true distance of the setting it picks above that of the best one (``spread``: what a
median setting costs). Rows that were made
before the metric existed get it from their accuracies and attack; those of wrong labels cannot, and are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau

from raybench import load_trials
from raybench.errors import UserError

SEARCH = ["dataset", "model", "scenario", "method", "variant", "original_kind", "train_seed"]
FEWEST = 5  # settings that a rank correlation is worth taking of


def objective(rows: pd.DataFrame, original: pd.Series) -> pd.Series:
    """The objective of search rows [n] of one problem: as measured, or from the columns that it is made of."""
    if "retrained_free" in rows and rows["retrained_free"].notna().any():
        return rows["retrained_free"]
    kind = str(original["scenario"]).partition("(")[0]
    if kind not in ("class", "random"):
        return pd.Series(float("nan"), index=rows.index)
    expected = rows["validation_accuracy"] if kind == "random" else 0.0
    lost = [
        (original[f"{split}_accuracy"] - rows[f"{split}_accuracy"]).clip(lower=0) for split in ("retain", "validation")
    ]
    return (sum(lost) + (rows["forget_accuracy"] - expected).abs() + (rows["loss_attack_auc"] - 0.5).abs()) / 4


def agreements(folder: str | Path) -> Iterator[dict[str, object]]:
    """One record per search of a results folder that has settings enough."""
    trials = load_trials(folder)
    ok = trials[trials["status"] == "ok"]
    originals = ok[ok["method"] == "original"].set_index(
        ["dataset", "model", "scenario", "train_seed", "original_kind"]
    )
    for key, rows in ok[ok["phase"] == "search"].groupby(SEARCH):
        at = dict(zip(SEARCH, key, strict=True))
        where = tuple(at[name] for name in originals.index.names)
        rows = rows.drop_duplicates("hparams")
        if where not in originals.index or len(rows) < FEWEST:
            continue
        value, distance = objective(rows, originals.loc[[where]].reset_index().iloc[0]), rows["distance_validation"]
        both = value.notna() & distance.notna()
        tau = kendalltau(value[both], distance[both]).statistic if both.sum() >= FEWEST else float("nan")
        if tau == tau:  # no number where all settings are alike
            cost = distance[value[both].idxmin()] - distance[both].min()
            yield at | {
                "settings": int(both.sum()),
                "tau": tau,
                "cost": cost,
                "spread": distance[both].median() - distance[both].min(),
            }


def main(folders: list[str]) -> None:
    """Print a line per folder and kind of request, and one per kind over all folders."""
    found = pd.DataFrame([{"folder": Path(f).name, **record} for f in folders for record in agreements(f)])
    if not len(found):
        raise UserError(
            f"the folders must hold searches of {FEWEST} settings or more, got none in {', '.join(folders)}"
        )
    found["kind"] = found["scenario"].str.partition("(")[0]
    for columns in (["folder", "kind"], ["kind"]):
        table = found.groupby(columns).agg(
            searches=("tau", "size"),
            settings=("settings", "sum"),
            tau_low=("tau", lambda tau: tau.quantile(0.25)),
            tau=("tau", "median"),
            tau_mean=("tau", "mean"),
            cost=("cost", "median"),
            cost_mean=("cost", "mean"),
            spread=("spread", "median"),
        )
        print(table.round(3).to_string(), end="\n\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("it needs results folders, as in: python jobs/retrained_free_agreement.py results/*")
    try:
        main([name for name in sys.argv[1:] if Path(name).is_dir()])
    except UserError as error:
        sys.exit(str(error))

"""Does a search that looks at a part of each split rank settings as one that looks at all of them does?

    python jobs/benchmarks/search_part.py --data DIR [--samples 500 1000 2000] [--methods finetune ssd ...]

The settings that the searches of a shipped results folder tried (MNIST, lenet5) are run again in one process, evaluated
on all samples and on parts of them: the same trial, only another evaluation.
Kendall's tau-b of the objective between a part and all is taken over all settings of a scenario, and within each
search (the median is kept). ``regret``: how much farther from the retrained model, by all samples, the setting is that
the part would choose. The seconds of the trials' evaluation stand beside. Adds rows to
``results/performance/search_part.parquet``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rows import PERFORMANCE
from scipy.stats import kendalltau
from side_by_side import circumstances, keep

import raybench as rb
from raybench.errors import UserError
from raybench.metrics import DEFAULT_METRICS
from raybench.places import data_root
from raybench.rules import OBJECTIVES
from raybench.spec import SEARCH, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

METHODS = ("finetune", "neggrad_plus", "scrub", "salun", "ssd", "deepclean")
OBJECTIVE = OBJECTIVES["distance"][0]


def again(rows: pd.DataFrame, samples: Sequence[int], shop: Workshop) -> pd.DataFrame:
    """A line per row and evaluation: ``samples`` (0: all), the objective, the seconds beside the method's clock."""
    found = []
    for row in rows.to_dict("records"):
        spec = TrialSpec.from_dict(json.loads(row["spec"]))
        for part in (None, *samples):
            new = run_trial(dataclasses.replace(spec, samples=part), {}, shop)
            if new["status"] == "ok":
                place = {key: row[key] for key in ("scenario", "method", "trial_id")}
                beside = new["wall_s"] - new["unlearn_s"] + new["shared_s"]
                found.append({**place, "samples": part or 0, "value": new[OBJECTIVE], "beside_s": beside})
    return pd.DataFrame(found)


def agreement(found: pd.DataFrame, samples: int) -> list[dict[str, Any]]:
    """The rows of one size of the part: one a scenario."""
    rows = []
    for scenario, lines in found.groupby("scenario"):
        values = lines.pivot(index=["method", "trial_id"], columns="samples", values="value")
        seconds = lines.groupby("samples")["beside_s"].median()
        each, regrets = [], []
        for _, mine in values.groupby(level="method"):
            tau = kendalltau(mine[0], mine[samples]).statistic
            each += [] if tau != tau else [tau]  # a search whose settings are all alike ranks nothing
            regrets.append(float(mine.loc[mine[samples].idxmin(), 0] - mine[0].min()))
        rows.append(
            {
                "scenario": scenario,
                "samples": samples,
                "settings": len(values),
                "searches": len(regrets),
                "tau": kendalltau(values[0], values[samples]).statistic,
                "tau_in_a_search": statistics.median(each),
                "at_least": 0.9,
                "regret": max(regrets),
                "beside_s": seconds[samples],
                "beside_all_s": seconds[0],
                **circumstances(),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--results", default=str(PERFORMANCE.parent / "baselines_mnist"), help="whose search rows")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--limit", type=int, help="settings of each search, for a try")
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "search_part.parquet")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    trials = rb.load_trials(given.results)
    rows = trials[(trials["phase"] == SEARCH) & trials["method"].isin(given.methods)]
    if given.limit is not None:
        rows = rows.groupby(["scenario", "method"]).head(given.limit)
    with tempfile.TemporaryDirectory() as store:
        try:
            shop = Workshop(Settings("search_part", store, DEFAULT_METRICS, data_root=data_root(given.data)))
            found = again(rows, given.samples, shop)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    shown = ["scenario", "samples", "settings", "tau", "tau_in_a_search", "regret", "beside_s", "beside_all_s"]
    keep(given.out, [row for size in given.samples for row in agreement(found, size)], shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())

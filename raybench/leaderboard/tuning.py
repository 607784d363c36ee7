"""What the searches behind a leaderboard line cost: every trial once, and retraining where the objective used it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raybench.leaderboard.schema import LINE

COLUMNS = ("trial_id", "train_seed", "unlearn_s", "retrain_s")


class TuningCost:
    """Charged seconds by line, from ``trials`` (``COLUMNS``, each trial once) and the ``searches`` table."""

    def __init__(self, trials: pa.Table, searches: pa.Table) -> None:
        encoded = searches["line"].combine_chunks().dictionary_encode()
        self._searches: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            search = json.loads(text)
            self._searches.setdefault(tuple(search.get(name) for name in LINE[:4]), []).append((code, search))
        # Which rows each of them tried: positions in ``trials``, sorted by search.
        rows = pc.index_in(searches["trial_id"], value_set=trials["trial_id"].combine_chunks())
        known = rows.is_valid().to_numpy(zero_copy_only=False)
        codes = encoded.indices.to_numpy()[known]
        order = np.argsort(codes, kind="stable")
        self._rows = rows.drop_null().to_numpy()[order]
        self._ends = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
        self._trials = {name: trials[name].to_numpy() for name in COLUMNS[1:]}

    @classmethod
    def of_frames(cls, trials: pd.DataFrame, searches: pd.DataFrame) -> TuningCost:
        """Of the same tables as frames."""
        columns = {
            "trial_id": pa.array(trials["trial_id"].tolist(), type=pa.string()),
            "train_seed": pa.array(trials["train_seed"].tolist(), type=pa.int64()),
            "unlearn_s": pa.array(trials["unlearn_s"].astype("float64"), type=pa.float64()),
            "retrain_s": pa.array(trials["retrain_s"].astype("float64"), type=pa.float64()),
        }
        texts = {name: pa.array(searches[name].tolist(), type=pa.string()) for name in ("line", "trial_id")}
        return cls(pa.table(columns), pa.table(texts))

    def seconds(self, line: Mapping[str, Any]) -> float:
        """Of all trials that were tried for ``line``; with the retraining of their seeds where ``selected_on`` says
        that the objective used it."""
        served = [
            self._rows[self._ends[code] : self._ends[code + 1]]
            for code, search in self._searches.get(tuple(line[name] for name in LINE[:4]), [])
            if _serves(search, line)
        ]
        if not served:
            return 0.0
        rows = np.unique(np.concatenate(served))  # in the order they were written
        seconds = float(np.nansum(self._trials["unlearn_s"][rows]))
        if line["selected_on"] == "retrained":
            retrains = self._trials["retrain_s"][rows]
            rows, retrains = rows[~np.isnan(retrains)], retrains[~np.isnan(retrains)]
            _, first = np.unique(self._trials["train_seed"][rows], return_index=True)
            seconds += float(retrains[np.sort(first)].sum())
        return seconds


def _serves(search: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    if "variants" in search and line["variant"] not in search["variants"]:
        return False
    return "variant" not in search or search["variant"] == line["variant"]

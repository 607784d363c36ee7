"""What methods cost as measured: sample passes as a share of retraining, from shipped rows.

``raybench/resources/measured_passes.json`` is made from ``results/baselines_mnist`` by ``jobs/measure_passes.py`` and
travels with the package, so that ``raybench list methods`` can show it where there are no rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from raybench.version import PACKAGE

FILE = PACKAGE / "resources" / "measured_passes.json"


def measure_passes(trials: pd.DataFrame, spec: str) -> dict[str, Any]:
    """``{"spec": ..., "methods": {name: share}}`` from trial rows: per method the mean ``retrain_share`` of the final
    rows that are ok (forward and backward passes of the tuned setting over those of one retraining)."""
    finals = trials[(trials["phase"] == "final") & (trials["status"] == "ok")]
    shares = finals.groupby("method")["retrain_share"].mean().dropna()
    return {"spec": spec, "methods": {str(name): float(f"{share:.2g}") for name, share in shares.items()}}


@functools.cache
def measured_shares() -> Mapping[str, float]:
    """Method -> share of a retraining's sample passes, of the methods that the shipped rows have."""
    found: dict[str, float] = json.loads(FILE.read_text())["methods"] if FILE.is_file() else {}
    return found

"""Rows of benchmarks, in Parquet files that grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

PERFORMANCE = Path(__file__).parents[2] / "results" / "performance"


def add_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Below the rows that are there. A benchmark that adds each at once leaves what it measured where it is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [pd.read_parquet(path)] if path.exists() else []
    pd.concat([*earlier, pd.DataFrame(list(rows))], ignore_index=True).to_parquet(path, index=False)

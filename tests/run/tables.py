"""What two runs are compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from raybench.leaderboard.query import load_trials
from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Bytes and time of change of every file."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".staging" not in path.parts
    }


def shared_columns(folder: Path) -> pd.DataFrame:
    """What two runs of one spec must share, by trial id."""
    names = comparable(ResultStore(folder).schema())
    frame = load_trials(folder)
    assert frame["trial_id"].is_unique
    return frame[names].sort_values("trial_id", ignore_index=True)


def ids(folder: Path) -> set[str]:
    return set(load_trials(folder)["trial_id"])

"""A results folder of made-up rows, written as one Parquet part: as many as one likes, in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.leaderboard.schema import MetricInfo, describe, trial_schema

METRICS = [
    MetricInfo("distance", 1, "fraction", "lower"),
    MetricInfo("distance_validation", 1, "fraction", "lower"),
    MetricInfo("retain_accuracy"),
    MetricInfo("forget_accuracy"),
    MetricInfo("test_accuracy"),
]


def write_rows(folder: Path, problems: int, methods: int, search: int, seeds: int) -> None:
    """``problems`` x ``methods`` x (``search`` + ``seeds``) rows of trials, and the references."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[object]] = {}
    cells = [
        (p, m, phase, index)
        for p in range(problems)
        for m in range(-2, methods)
        for phase, count in (("search", search if m >= 0 else 0), ("final", seeds))
        for index in range(count)
    ]
    n = len(cells)
    gamma = 10 ** rng.uniform(-1, 2, n)
    loss = rng.uniform(0.0, 0.3, n)
    plain = {
        "attempt": 0, "experiment": "many", "protocol": "1", "dataset": "made_up", "model": "mlp", "method_version": 1,
        "variant": "", "unlearn_seed": 0, "spec": "{}", "status": "ok", "device_type": "cpu", "reported": None,
        "selected_on": "retrained",
    }  # fmt: skip
    rows |= {name: [value] * n for name, value in plain.items()}
    rows["scenario"] = [f"class({p})" for p, _, _, _ in cells]
    rows["method"] = [f"method {m}" if m >= 0 else ("original", "retrain")[m] for _, m, _, _ in cells]
    rows["phase"] = [phase if m >= 0 else "reference" for _, m, phase, _ in cells]
    rows["train_seed"] = [index if phase == "final" else 0 for _, _, phase, index in cells]
    rows["trial_id"] = [f"{i:020x}" for i in range(n)]
    rows["hparams"] = [json.dumps({"gamma": g, "lr": 0.1 * g}) if c[2] == "search" else '{"gamma":2.0}'
                       for g, c in zip(gamma.tolist(), cells, strict=True)]  # fmt: skip
    rows["unlearn_s"] = [float(10 ** (m % 7 - 3 + x)) if m >= 0 else (0.0, 20.0)[m] for (_, m, _, _), x in
                         zip(cells, rng.uniform(0, 1, n), strict=True)]  # fmt: skip
    for metric in METRICS:
        rows[metric.name] = (loss if metric.name.startswith("distance") else 1.0 - loss).tolist()
        rows[f"{metric.name}_retrained"] = [None if metric.name.startswith("distance") else 0.95] * n
        rows[f"{metric.name}_gap"] = (loss - 0.05).tolist()
    schema = trial_schema(METRICS)
    table = pa.table({f.name: pa.array(rows.get(f.name, [None] * n), type=f.type) for f in schema}, schema=schema)
    (folder / "trials").mkdir(parents=True)
    table = table.replace_schema_metadata(describe("trials", METRICS, "1"))
    pq.write_table(table, folder / "trials" / "part-00000000000000000001-made.parquet", compression="zstd")

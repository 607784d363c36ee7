"""The golden run compares with ``tests/data/golden.json``. Where its numbers move, results that people have are no
longer comparable with new ones. So first raise the version of what moved them: of the method or of the metric where
it registers, else ``PROTOCOL`` in ``raybench/spec.py``. Then write the file again by

    python tests/trial/test_golden.py

A number that a kind of row no longer has moves no other: searches lost the attacks that fit a classifier so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from raybench.metrics import DEFAULT_METRICS
from raybench.registry import (
    METHODS,
)
from raybench.spec import FINAL, PROTOCOL, REFERENCE, SEARCH
from raybench.trial import run_trial
from tests.trial.parts import INFOS, problem_of, shop_at, trial_of

GOLDEN = Path(__file__).parents[1] / "data" / "golden.json"


GOLDEN_TRIALS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "original": ("original", REFERENCE, "class", {}),
    "retrain": ("retrain", REFERENCE, "class", {}),
    "finetune class": ("finetune", FINAL, "class", {"epochs": 1}),
    "finetune random search": ("finetune", SEARCH, "random", {"epochs": 1}),
    "deepclean class": ("deepclean", FINAL, "class", {"epochs": 1, "fisher_samples": 60}),
    "gradient_ascent random": ("gradient_ascent", FINAL, "random", {"epochs": 1, "lr": 1e-3}),
}
GOLDEN_COLUMNS = (
    "forget_size",
    "forward_passes",
    "backward_passes",
    "retrain_share",
    *(f"{m}{part}" for m in DEFAULT_METRICS for part in ("", "_retrained", "_gap")),
)


def golden_numbers(folder: Path) -> dict[str, Any]:
    """The numbers of the golden run, by trial and column."""
    shop = shop_at(folder)
    numbers: dict[str, Any] = {"versions": {"protocol": PROTOCOL} | {m.name: m.version for m in INFOS}}
    for label, (name, phase, scenario, hparams) in GOLDEN_TRIALS.items():
        row = run_trial(trial_of(name, phase, problem_of(scenario), hparams=hparams), {}, shop)
        assert row["status"] == "ok", row.get("reason")
        numbers["versions"][name] = METHODS[name].version
        numbers[label] = {column: row[column] for column in GOLDEN_COLUMNS if row.get(column) is not None}
    return numbers


def test_golden_run(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    found = golden_numbers(tmp_path)
    assert found["versions"] == expected["versions"], "a version moved: write golden.json again, see the docstring"
    assert found.keys() == expected.keys()
    moved = []
    for label in GOLDEN_TRIALS:
        for column in sorted(expected[label].keys() | found[label].keys()):
            old, new = expected[label].get(column), found[label].get(column)
            if old is None or new is None or abs(old - new) > 1e-4:
                moved.append(f"{label}.{column}: {old} -> {new}")
    assert moved == [], "results moved without a version bump; see the docstring of this file"


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden_numbers(Path(scratch)), indent=1, sort_keys=True) + "\n")

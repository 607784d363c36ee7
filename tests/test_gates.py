"""Sanity gates: each fails on a planted fault and on nothing else; the page is generated and current."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.gates import COMMAND, Evidence, beats_guessing, entries, judge_gates, render
from raybench.outputs import Outputs, SplitOutputs

ROOT = Path(__file__).parent.parent
SPLITS = {"retain": 200, "forget": 40, "validation": 80, "test": 60}


def outputs(accuracy: float, draw: int, **other: float) -> Outputs:
    """Logits of ten classes; exactly that share of every split is right (``other``: of the named split)."""
    generator = torch.Generator().manual_seed(draw)
    found = {}
    for name, size in SPLITS.items():
        labels = torch.randint(0, 10, (size,), generator=generator)
        right = torch.arange(size) < round(other.get(name, accuracy) * size)
        logits = torch.rand(size, 10, generator=generator)
        logits[torch.arange(size), torch.where(right, labels, (labels + 1) % 10)] += 2.0
        found[name] = SplitOutputs(logits, labels)
    return Outputs(found)


def sound(**changes: Any) -> Evidence:
    seen = Evidence(outputs(0.9, 1), outputs(0.97, 2), outputs(0.95, 3), 10, acts=True, weights_changed=True)
    return dataclasses.replace(seen, **changes)


def verdicts(**changes: Any) -> dict[str, bool | None]:
    """The gates that do not hold on otherwise sound evidence."""
    return {name: holds for name, holds in judge_gates(sound(**changes)).items() if holds is not True}


def with_value(of: Outputs, value: float) -> Outputs:
    logits = of["test"].logits.clone()
    logits[3, 4] = value
    return Outputs({**of, "test": SplitOutputs(logits, of["test"].labels)})


def test_sound_rows_pass_all() -> None:
    assert verdicts() == {}
    # Forgetting everything of the forget set, and retain accuracy far above the retrained model's, are no faults.
    assert verdicts(outputs=outputs(0.9, 1, forget=0.0)) == {}
    assert verdicts(outputs=outputs(1.0, 1), retrained=outputs(0.88, 3)) == {}


FAULTS: dict[str, tuple[dict[str, Any], dict[str, bool | None]]] = {
    "NaN in the original": ({"original": with_value(outputs(0.97, 2), float("nan"))}, {"outputs_finite": False}),
    "infinity in the retrained": ({"retrained": with_value(outputs(0.95, 3), float("inf"))}, {"outputs_finite": False}),
    "a class switched off": ({"outputs": with_value(outputs(0.9, 1), float("-inf"))}, {}),
    "an untrained original": ({"original": outputs(0.1, 2)}, {"original_above_chance": False}),
    "a retrained model that lost the recipe": ({"retrained": outputs(0.86, 3)}, {"retrained_not_worse": False}),
    "the original under two names": ({"retrained": outputs(0.97, 2)}, {"retrained_is_another": False}),
    "a destroyed model": (
        {"outputs": outputs(0.1, 1)},
        {"retain_above_chance": False, "validation_above_chance": False},
    ),
    "only the retain set recited": ({"outputs": outputs(0.9, 1, validation=0.1)}, {"validation_above_chance": False}),
    "nobody knows unseen samples": (
        {"outputs": outputs(0.9, 1, validation=0.1), "retrained": outputs(0.95, 3, validation=0.1)},
        {"validation_above_chance": None},
    ),
    "nothing changed": (
        {"outputs": outputs(0.97, 2), "weights_changed": False},
        {"weights_changed": False, "outputs_changed": False},
    ),
    "weights without effect": ({"outputs": outputs(0.97, 2)}, {"outputs_changed": False}),
    "a predictor": ({"weights_changed": None}, {"weights_changed": None}),
    "a method declared to change nothing": (
        {"outputs": outputs(0.97, 2), "acts": False, "weights_changed": None},
        {"weights_changed": None, "outputs_changed": None},
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_fails_its_own_gates(case: str) -> None:
    changes, expected = FAULTS[case]
    assert verdicts(**changes) == expected


def test_without_validation_samples_it_is_not_judged() -> None:
    empty = SplitOutputs(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
    assert verdicts(outputs=Outputs({**outputs(0.9, 1), "validation": empty})) == {"validation_above_chance": None}


def test_guessing_rarely_passes_and_two_errors_above_does() -> None:
    passed = 0
    for draw in range(400):
        generator = torch.Generator().manual_seed(draw)
        split = SplitOutputs(
            torch.rand(100, 10, generator=generator), torch.randint(0, 10, (100,), generator=generator)
        )
        passed += beats_guessing(split, 0.1)
    assert passed / 400 <= 0.0399 + 3 * (0.0399 * 0.9601 / 400) ** 0.5  # binomial: P(more than 16 of 100 at 0.1)
    assert beats_guessing(outputs(0.17, 0, retain=0.17)["retain"], 0.1)
    assert not beats_guessing(outputs(0.14, 0, retain=0.14)["retain"], 0.1)  # 0.1 + 2 * 0.0212 at 200 samples


def test_every_gate_says_what_why_and_what_to_do() -> None:
    found = entries()
    assert [entry.name for entry in found] == list(judge_gates(sound()))
    for entry in found:
        assert entry.asks.endswith("?")
        assert min(map(len, (entry.why, entry.failure, entry.remedy))) > 20, entry.name
        assert all(name not in text for name in ("Why:", "What to do:") for text in dataclasses.astuple(entry))
    assert [record["name"] for record in json.loads(render("json"))] == [entry.name for entry in found]
    assert all(entry.name in render("table") for entry in found)


def test_committed_page_is_todays() -> None:
    command = [sys.executable, "-m", "raybench", "list", "gates", "--format", "markdown"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert (ROOT / "results" / "gates.md").read_text() == made, f"make it anew: {COMMAND}"
    assert "(results/gates.md)" in (ROOT / "README.md").read_text()

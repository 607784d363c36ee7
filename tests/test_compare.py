"""``raybench compare`` on real runs: disjoint seeds of one spec differ in nothing; a planted loss is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raybench
from raybench.registry import METHODS, RETAIN
from raybench.task import UnlearningTask

LOSS = 0.03  # of all answers


@dataclass(frozen=True)
class Nothing:
    """No hyperparameters."""


@pytest.fixture
def planted() -> Iterator[dict[str, float]]:
    """A method that fine-tunes for an epoch, and then answers wrong for a share of the images that can be set."""
    share = {"wrong": 0.0}

    @METHODS.register("planted", hparams=Nothing, needs={RETAIN}, predictor=True)
    def planted(task: UnlearningTask, hp: Nothing) -> Any:
        """Fine-tune, then damage."""
        model = task.model
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        for batch in task.retain.batches(64):
            optimiser.zero_grad()
            task.loss(model, batch).mean().backward()
            optimiser.step()
        return _Damaged(model, share["wrong"])

    yield share
    METHODS._entries.pop("planted")


class _Damaged:
    """Turns the answer for the images whose pixels say so: always the same ones, all over every split."""

    def __init__(self, model: nn.Module, share: float) -> None:
        self.model, self.share = model.eval(), share

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        draw = (images.flatten(1).double().abs().sum(dim=1) * 1e4).round() % 1000 / 1000
        return torch.where((draw < self.share)[:, None], -logits, logits)


SPEC = {
    "name": "compared",
    "problems": [{"dataset": "digits", "models": [{"name": "mlp", "hidden": [32]}], "scenarios": ["class"]}],
    "methods": ["planted", {"name": "gradient_ascent", "hparams": {"lr": 1e-4, "epochs": 1}}],
    "recipe": {"epochs": 5},
}


def ran(folder: str, seeds: list[int]) -> str:
    outcome = raybench.run(SPEC | {"seeds": {"train": seeds}}, folder, store="store", serial=True, quiet=True)
    assert outcome.exit_code == 0, outcome.bad
    return folder


def test_on_real_runs(cli: Any, planted: dict[str, float]) -> None:
    first, other = ran("a", [0, 1, 2, 3, 4]), ran("b", [5, 6, 7, 8, 9])
    said = cli("compare", first, other)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("no difference")
    assert "Welch" in said.out
    assert cli("compare", first, first).out.startswith("no difference")
    planted["wrong"] = LOSS
    said = cli("compare", first, ran("c", [0, 1, 2, 3, 4]), "--format", "json")
    assert said.code == 3
    found = [record for record in json.loads(said.out)["records"] if record["verdict"] == "difference"]
    assert {record["method"] for record in found} == {"planted"}
    at = {record["metric"]: record for record in found}
    assert at["test_accuracy"]["test"] == "paired"
    assert at["test_accuracy"]["difference"] == pytest.approx(-LOSS, abs=0.015)
    assert "test_accuracy" in cli("compare", first, "c").out
    frame = raybench.compare(raybench.load_trials(first), raybench.load_trials("c"), metrics=["test_accuracy"])
    assert frame.set_index("method").loc["planted", "verdict"] == "difference"

"""Every table and figure of the source documents has a spec in small and one at its size. Each is planned as ``raybench
plan`` does, on facts of its data instead of the data: what would run, whether models fit images. Nothing is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from raybench.experiment import load_experiment
from raybench.ledger import Ledger
from raybench.plan import DataFacts, Plan
from raybench.problem import build_model
from raybench.registry import METHODS
from raybench.spec import Choice
from raybench.stages import count
from raybench.weights import without_weights

ROOT = Path(__file__).parent.parent
# Training images, classes and shape of an image, of data that are mostly not here.
KNOWN = {
    "digits": (1438, 10, (1, 28, 28)),
    "mnist": (60000, 10, (1, 28, 28)),
    "cifar10": (50000, 10, (3, 32, 32)),
    "cifar100": (50000, 100, (3, 32, 32)),
    "tinyimagenet": (100000, 200, (3, 64, 64)),
    "cub": (5994, 200, (3, 224, 224)),
    "stanford_cars": (8144, 196, (3, 224, 224)),
    "imagenet": (1281167, 1000, (3, 224, 224)),
}
# What the issue of breadth and the documents themselves name, as words of a row's first cell.
DOCUMENTS = {
    "DeepClean": ["table", "gamma", "MNIST", "CIFAR-100"],
    "mnemonic code": [
        "Tables 2 and 3",
        "Table 4",
        "Table 5",
        "Table 7",
        "seconds",
        "images per class",
        "lambda",
        "CUB",
    ],
    "rewinding": ["Table 1", "side effects", "PVTv2", "ConvNeXt"],
    "zero-shot": ["table", "cutoffs", "grids of images", "100 and 6,000"],
    "AFIM": ["VGG on MNIST, CIFAR-10 and CIFAR-100"],
}


class Row(NamedTuple):
    """A row of the table in docs/specs.md."""

    what: str
    tiny: str
    tiny_time: str
    full: str
    full_time: str
    data: str


def rows() -> list[Row]:
    text = (ROOT / "docs" / "specs.md").read_text().split("| document: table or figure |")[1].split("\n\n")[0]
    return [Row(*(cell.strip() for cell in line.strip("| ").split(" | "))) for line in text.splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


SPECS = sorted({name for row in rows() for cell in (row.tiny, row.full) for name in names(cell)})


def path_of(name: str) -> str:
    return name if name.startswith("reproduce_") else str(ROOT / "jobs" / f"{name}.yaml")


def facts(dataset: Choice) -> DataFacts:
    """With the options that change them."""
    images, classes, shape = KNOWN[dataset.name]
    side, kept = dataset.options.get("side", shape[1]), dataset.options.get("classes", classes)
    there = images * kept // classes
    assert kept <= dataset.options.get("train_size", there) <= there
    return DataFacts(dataset.label, kept, (shape[0], side, side))


def test_every_table_and_figure_has_a_row_with_both_scales() -> None:
    for document, wanted in DOCUMENTS.items():
        mine = [row.what for row in rows() if row.what.startswith(f"{document}: ")]
        for words in wanted:
            assert any(words in what for what in mine), (document, words)
    assert {row.what.split(":")[0] for row in rows()} == set(DOCUMENTS)
    for row in rows():
        assert names(row.tiny), row.what
        assert names(row.full), row.what
        assert re.search(r"\d (min|h)$", row.tiny_time), row.what
        assert re.match(r"\d+ h", row.full_time), row.what
        assert row.data


@pytest.mark.parametrize("name", SPECS)
def test_is_planned(name: str) -> None:
    experiment = load_experiment(path_of(name))
    assert re.search(r"(?i)\bminutes?\b|\bhours?\b", experiment.description), "says how long it takes"
    data = {cell.dataset.label: facts(cell.dataset) for cell in experiment.cells}
    plan = Plan(experiment, data, ["cpu"])
    stages = count(plan, Ledger())
    seeds = len(experiment.train_seeds)
    assert stages["references"]["to_run"] >= len(plan.problems) * seeds  # a retrained model for each, at least
    assert stages["finals"]["to_run"] == plan.count_finals() >= len(plan.lines) * seeds
    assert stages["search"]["to_run"] == sum(s.plan.trials * len(s.plan.seeds) for s in plan.searches())
    ran = {line.entry.name for line in plan.lines if line.skip is None}
    assert ran == {c.method for c in experiment.candidates if not METHODS[c.method].reference}, "one that never runs"
    for problem in plan.problems:
        known = data[problem.dataset.label]
        network = Choice(problem.model.name, without_weights(problem.model.options))
        with torch.device("meta"):
            model = build_model(network, known.num_classes, known.input_shape)
        assert model.head.out_features == known.num_classes


def test_full_ones_ask_for_a_gpu() -> None:
    for name in {name for row in rows() for name in names(row.full)}:
        assert load_experiment(path_of(name)).resources["gpu"] > 0, name

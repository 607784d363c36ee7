"""What runs on what: every method with every kind of scenario and every family of networks, from real runs.

``python docs/compatibility.py`` runs a covering array of the three (Cohen et al. 1997: every pair of values in at least
one row) on tiny problems and writes ``docs/compatibility.md``; a test runs the same array and holds the page to it.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from raybench.data import RawData
from raybench.ledger import Ledger, Request
from raybench.problem import load_data
from raybench.registry import DATASETS, METHODS, MethodEntry
from raybench.run import Options, Prepared, prepare
from raybench.space import resolve, searched
from raybench.spec import STANDARD, Choice
from raybench.subset import limit
from raybench.trial import run_trial
from raybench.workshop import Workshop

PAGE = Path(__file__).with_suffix(".md")
# Family -> the network that stands for it, as small as it gets.
FAMILIES = {
    "convolutions, batch norm": Choice("vgg8", {"width": 4}),
    "convolutions, no norm": Choice("lenet5"),
    "depthwise, layer norm": Choice("convnext_t", {"width": 4, "depths": [1, 1], "patch": 4}),
    "attention": Choice("vit_tiny", {"width": 8, "depth": 1, "heads": 2, "patch": 7}),
    "dense": Choice("mlp", {"hidden": [16]}),
}
ROWS = "rows.txt"
SCENES = {
    "class": Choice("class", {"classes": [0]}),
    "several classes": Choice("class", {"classes": [0, 3]}),
    "subclass": Choice("subclass", {"subclasses": [2]}),
    "random": Choice("random", {"fraction": 0.2}),
    "index": Choice("index", {"file": ROWS}),
    "label_noise": Choice("label_noise", {"fraction": 0.2}),
    "overfit": Choice("overfit", {"fraction": 0.05, "repeats": 3}),
    "backdoor": Choice("backdoor", {"fraction": 0.2}),
    "memorization": Choice("memorization", {"fraction": 0.1}),
    "repeated": Choice("repeated", {"requests": 2, "fraction": 0.1}),
    "partial": Choice("partial", {"of": "label_noise", "fraction": 0.2}),
}
DATASET, SIZE = "digit_halves", 180
RAN = "ok"
HEAD = """# What runs on what

Every method with every kind of scenario and every family of networks, on {images} images of digits: `ok` ran, was
evaluated and has finite weights and outputs; a number is the reason that its row is `skipped` with. `python
docs/compatibility.py` runs {runs} trials, in which each pair of the three meets at least once, and writes this page;
the tests run the same trials. A pair is skipped only where no third value lets it run.
"""


Pair = tuple[str, str]


class Cell(NamedTuple):
    """A method, a kind of scenario (``SCENES``) and a family of networks (``FAMILIES``)."""

    method: str
    scene: str
    family: str

    @property
    def pairs(self) -> tuple[Pair, Pair, Pair]:
        """The three pairs that a run of this cell covers."""
        return (self.method, self.scene), (self.method, self.family), (self.scene, self.family)


class Result(NamedTuple):
    """How a trial ended; ``reason`` is empty where it is ok."""

    status: str
    reason: str = ""


@contextmanager
def halves() -> Iterator[None]:
    """While this is open, the dataset ``digit_halves`` is there: digits, each of two arbitrary subclasses."""

    def digit_halves(root: Path | None, download: bool = False) -> RawData:
        """A few digits; images of even and of odd rows are the subclasses."""
        raw = limit(load_data(Choice("digits"), None, False)[0], SIZE, 60)
        fine = 2 * raw.y_train + np.arange(len(raw.y_train)) % 2
        return dataclasses.replace(raw, name=DATASET, fine=fine, fine_names=tuple(map(str, range(20))))

    DATASETS.names()
    DATASETS.register(DATASET)(digit_halves)
    try:
        yield
    finally:
        DATASETS._entries.pop(DATASET)


def own_methods() -> list[MethodEntry]:
    """What raybench ships; plug-ins of others, which a process may have loaded, stand on no page of ours."""
    return [entry for entry in METHODS if entry.fn.__module__.startswith("raybench.methods.")]


def spec() -> dict[str, object]:
    """The full product as one spec: nothing is searched, every method is as small as its ``tiny`` makes it."""
    methods = []
    for entry in own_methods():
        hparams = dataclasses.asdict(resolve(entry.hparams, entry.tiny, entry.name))
        fixed = {f: hparams[f] for f in {*entry.tiny, *searched(entry.hparams)}}
        methods.append({"name": entry.name, **({"hparams": fixed} if fixed else {})})
    problem = {
        "dataset": DATASET,
        "models": [{"name": model.name, **model.options} for model in FAMILIES.values()],
        "scenarios": [{scene.name: dict(scene.options)} for scene in SCENES.values()],
        "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.02, "augment": False},
    }
    metrics = ["retain_accuracy", "forget_accuracy", "test_accuracy", "unlearning_accuracy"]
    return {
        "name": "compatibility", "problems": [problem], "methods": methods, "seeds": {"train": [0]}, "gold_seeds": 1,
        "metrics": metrics, "keep": [], "curves": False,
    }  # fmt: skip


def product(prepared: Prepared) -> dict[Cell, Request]:
    """Every cell and the trial that it is; of ``original`` and ``retrain`` their rows as references."""
    families = {choice.name: name for name, choice in FAMILIES.items()}
    found: dict[Cell, Request] = {}
    for request in (*prepared.plan.references(), *prepared.plan.finals(Ledger())):
        problem, own = request.spec.problem, request.spec.training.kind != STANDARD
        cell = Cell(request.spec.method, _scene(problem.scenario), families[problem.model.name])
        if not (own and METHODS[cell.method].reference):
            found.setdefault(cell, request)
    return found


def _scene(choice: Choice) -> str:
    """The key of ``SCENES``; the plan filled in defaults and found the file."""
    for name, scene in SCENES.items():
        given = {**choice.options, **({"file": ROWS} if "file" in choice.options else {})}
        if scene.name == choice.name and given == {**given, **scene.options}:
            return name
    raise KeyError(choice.label)


def covering(cells: Sequence[Cell], runs: Callable[[Cell], bool]) -> list[Cell]:
    """Cells in which every pair meets: in a cell that ``runs`` says yes to, where one has that pair; else where the
    other two pairs do run, so that the reason is this pair's own.

    Greedy, method by method: the next cell is the one with most pairs that have not met, of those the one whose
    scenario and family met least often, then the first. Always the same for the same cells.
    """
    running = {pair for cell in cells if runs(cell) for pair in cell.pairs}
    shown: dict[Cell, set[Pair]] = {cell: set() for cell in cells}
    for pair in {pair for cell in cells for pair in cell.pairs}:
        mine = [cell for cell in cells if pair in cell.pairs]
        most = max(sum(p in running for p in cell.pairs) for cell in mine)
        near = [cell for cell in mine if sum(p in running for p in cell.pairs) == most]
        for cell in [cell for cell in mine if runs(cell)] or near:
            shown[cell].add(pair)
    left = set().union(*shown.values())
    met: Counter[Pair] = Counter()
    chosen: list[Cell] = []
    for method in (*dict.fromkeys(cell.method for cell in cells), None):
        mine = [cell for cell in cells if method in (cell.method, None)]
        while any(method in pair or method is None for pair in left):
            best = max(mine, key=lambda cell: (len(shown[cell] & left), -met[cell.pairs[2]]))
            left -= shown[best]
            met[best.pairs[2]] += 1
            chosen.append(best)
    return chosen


@contextmanager
def bench() -> Iterator[tuple[dict[Cell, Request], Callable[[Sequence[Cell]], dict[Cell, Result]]]]:
    """The full product, and what runs cells of it, as ``raybench run --serial`` would."""
    with halves(), threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ROWS).write_text("\n".join(map(str, range(0, SIZE, 5))))
        options = Options(results=f"{folder}/results", store=f"{folder}/store", data=folder)
        prepared = prepare(spec(), options, ["cpu"], write=False)
        requests = product(prepared)
        settings = dataclasses.replace(prepared.settings, artifacts=None, logs=None)

        def run(cells: Sequence[Cell]) -> dict[Cell, Result]:
            shop, results = Workshop(settings), {}
            for cell in sorted(cells, key=lambda cell: (cell.family, cell.scene, cell.method)):
                row = run_trial(requests[cell].spec, requests[cell].context, shop)
                results[cell] = Result(row["status"], row.get("reason") or "")
            return results

        yield requests, run


def array(requests: Mapping[Cell, Request]) -> list[Cell]:
    """The covering array of a product."""
    return covering(list(requests), lambda cell: "skip" not in requests[cell].context)


def page(results: Mapping[Cell, Result]) -> str:
    """The two tables and the reasons."""
    notes: list[str] = []

    def shown(part: list[Result]) -> str:
        if any(result.status == RAN for result in part):
            return RAN
        for result in part:
            if result.reason not in notes:
                notes.append(result.reason)
        return ", ".join(dict.fromkeys(str(notes.index(result.reason) + 1) for result in part))

    text = [HEAD.format(runs=len(results), images=SIZE)]
    methods = sorted({cell.method for cell in results})
    for title, field, values in (("scenario", "scene", list(SCENES)), ("family of networks", "family", list(FAMILIES))):
        text.append(f"## Method and {title}\n")
        text += ["| method | " + " | ".join(values) + " |", "| --- " * (len(values) + 1) + "|"]
        for method in methods:
            mine = {c: r for c, r in results.items() if c.method == method}
            cells = [shown([r for c, r in mine.items() if getattr(c, field) == value]) for value in values]
            text.append(f"| {method} | " + " | ".join(cells) + " |")
        text.append("")
    text.append("Networks: " + "; ".join(f"{name}: `{choice.label}`" for name, choice in FAMILIES.items()) + ".\n")
    text.append("Scenarios: " + "; ".join(f"{name}: `{choice.label}`" for name, choice in SCENES.items()) + ".\n")
    text.append("## Reasons\n")
    return "\n".join([*text, *(f"{number}. {note}" for number, note in enumerate(notes, 1))]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with bench() as (requests, run):
        outcomes = run(array(requests))
    bad = {cell: result for cell, result in outcomes.items() if result.status not in (RAN, "skipped")}
    if bad:
        sys.exit("\n".join(f"{' x '.join(cell)}: {result.status}, {result.reason}" for cell, result in bad.items()))
    PAGE.write_text(page(outcomes))
    print(PAGE)

"""The classifier that judges images which models make: a reference model of the same dataset, from the same store."""

from __future__ import annotations

import dataclasses

from raybench.probe import Judge
from raybench.problem import Problem
from raybench.registry import MODELS, SCENARIOS
from raybench.seeding import canonical
from raybench.spec import Choice, Training
from raybench.training import Recipe
from raybench.workshop import Workshop

MODEL = "lenet5"
SCENARIO = Choice("random", {"fraction": 0.1})  # any: an original model does not know what will be forgotten
RECIPE = Recipe(epochs=12, batch_size=64, lr=0.03, weight_decay=5e-4, augment=False)
PARTS = ("train_size", "test_size")  # options that take a part of a dataset


def make_judge(problem: Problem, shop: Workshop) -> Judge:
    """A LeNet-5 trained on the whole dataset of ``problem``, forgotten classes and all: one for every train seed.

    It sees all training images even where the problem takes a part of them: a better judge is a fairer one.
    """
    spec = problem.spec
    options = {key: value for key, value in spec.dataset.options.items() if key not in PARTS}
    dataset = Choice(spec.dataset.name, options)
    judged = dataclasses.replace(
        spec,
        dataset=dataset,
        checksum=shop.data(dataset)[1],
        model=Choice(MODEL),
        scenario=SCENARIO,
        recipe=canonical(dataclasses.asdict(RECIPE)),
        train_seed=0,
        versions={"model": MODELS[MODEL].version, "scenario": SCENARIOS[SCENARIO.name].version},
        train_workers=1,
    )
    whole = shop.problem(judged)
    reference = shop.references.original(whole, Training())
    correct = shop.references.outputs(whole, reference)["test"].correct
    return Judge(reference.model, whole.pixels, float(correct.double().mean()))

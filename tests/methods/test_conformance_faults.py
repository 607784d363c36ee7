"""The conformance suite finds faults: methods that break one rule each, and the check that must fail on them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

from raybench.conformance import Broken
from raybench.conformance import methods as suite
from raybench.registry import FORGET, METHODS, MethodEntry
from raybench.space import nuisance


@dataclass(frozen=True)
class BadHparams:
    """One field in range, one out of it."""

    strength: Annotated[float, nuisance(FloatDistribution(0.1, 1.0))] = 0.5
    """How much."""
    other: Annotated[float, nuisance(FloatDistribution(0.1, 1.0))] = 3.0


def nudge(task, amount=1.0):
    with torch.no_grad():
        task.model.head.bias.add_(amount)
    return task.model


def learn(task, model=None):
    images, labels = task.forget.tensors()
    torch.nn.functional.cross_entropy((model or task.model)(images), labels).backward()
    return nudge(task)


def swallow(task):
    try:
        task.checkpoint(task.model, 1)
    except Exception:  # the fault that the suite must find
        return nudge(task)
    return nudge(task)


def stain(task):
    task.forget.images.add_(1)
    return nudge(task)


def undeclared_input(task, hp):
    value = task.once("v", lambda generator: torch.full((1,), hp.strength))["value"]
    return nudge(task, float(value))


FAULTS = {
    "does nothing": (lambda task, hp: task.model, suite.weights_change_unless_declared, ()),
    "ignores a field": (
        lambda task, hp: nudge(task),
        suite.searched_hyperparameter_matters_somewhere,
        ("strength",),
    ),
    "default out of range": (lambda task, hp: nudge(task), suite.defaults_lie_inside_their_ranges, ()),
    "field without docstring": (lambda task, hp: nudge(task), suite.every_hyperparameter_is_documented, ()),
    "no paper": (lambda task, hp: nudge(task), suite.docstring_names_paper_and_equation, ()),
    "draws globally": (
        lambda task, hp: nudge(task, float(torch.rand(()))),
        suite.same_seed_gives_the_same_weights_whatever_the_global_seed,
        (),
    ),
    "moves the global state": (
        lambda task, hp: nudge(task, torch.rand(())),
        suite.inputs_and_global_state_are_untouched,
        (),
    ),
    "writes to the data": (lambda task, hp: stain(task), suite.inputs_and_global_state_are_untouched, ()),
    "not finite": (
        lambda task, hp: nudge(task, torch.nan),
        suite.result_is_finite_and_keeps_the_keys,
        ("lenet5",),
    ),
    "another network": (lambda task, hp: nn.Linear(1, 1), suite.result_is_finite_and_keeps_the_keys, ("lenet5",)),
    "raises at an end": (lambda task, hp: nudge(task, 1 / (hp.strength - 1.0)), suite.ends_of_the_ranges_run, ()),
    "swallows": (lambda task, hp: swallow(task), suite.exceptions_propagate, ("checkpoint",)),
    "declares too much": (lambda task, hp: nudge(task), suite.data_that_are_not_declared_are_refused, (FORGET,)),
    "undeclared input": (undeclared_input, suite.shared_values_depend_on_nothing_else_and_change_nothing, ()),
    "uncounted network": (
        lambda task, hp: learn(task, task._build()),
        suite.sample_passes_agree_with_the_flop_counter,
        (),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds(fault, monkeypatch):
    fn, check, arguments = FAULTS[fault]
    entry = MethodEntry(name=fault, fn=fn, hparams=BadHparams, needs=frozenset({FORGET}))
    monkeypatch.setitem(METHODS._entries, fault, entry)
    images = suite.bench_of(fault).splits[FORGET].images
    before = images.clone()
    with pytest.raises((Broken, ZeroDivisionError)):
        check(fault, *arguments)
    images.copy_(before)

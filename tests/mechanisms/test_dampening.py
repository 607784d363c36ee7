"""Dampening: the worked numbers of the specification, and the bounds that alpha has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.dampening import dampen, measured
from raybench.methods.ssd import SsdHparams
from raybench.testing import make_task

WHOLE, FORGET = torch.tensor([[1.0, 0.1, 0.0, 2.0]]), torch.tensor([[5.0, 2.0, 1.0, 20.1]])


def layer() -> nn.Linear:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0, 0.5, 3.0]]))
    return model


def dampened(alpha: float, dampening: float, forget: Tensor = FORGET) -> tuple[list[float], float]:
    model = layer()
    share = dampen(model, {"weight": forget}, {"weight": WHOLE}, alpha, dampening)
    return model.weight.flatten().tolist(), share


def test_worked_example() -> None:
    weights, share = dampened(10.0, 1.0)
    assert weights == pytest.approx([2.0, -0.05, 0.0, 0.298507], abs=1e-6)
    assert share == 0.75


def test_bounds() -> None:
    start = layer().weight.flatten().tolist()
    assert dampened(math.inf, 1.0) == (start, 0.0)
    assert dampened(0.0, 100.0)[0] == pytest.approx([2.0, -1.0, 0.0, 3.0])  # beta is at most 1
    nothing = torch.zeros_like(FORGET)
    assert dampened(0.0, 1.0, nothing) == (start, 0.0)
    for alpha, lam in ((1.0, 1.0), (3.0, 0.5), (10.0, 2.0)):
        weights, _ = dampened(alpha, lam)
        factors = torch.tensor(weights) / torch.tensor(start)
        chosen = (alpha * WHOLE < FORGET)[0]
        assert bool((factors[chosen] < lam / alpha).all())
        assert bool((factors[~chosen] == 1.0).all())


def test_per_sample_importances_know_the_bound() -> None:
    """I_f / I_D <= N / N_f, since D holds D_f: from there on alpha selects nothing, and just below it something."""
    task = make_task("ssd", model="mlp")
    bound = (len(task.forget) + len(task.retain)) / len(task.forget)
    forget, whole = measured(task, SsdHparams(fisher="sample"), task.loss, 2)
    ratios = torch.cat([(forget[n] / whole[n]).flatten() for n in forget])
    ratios = ratios[~ratios.isnan()]
    assert float(ratios.max()) <= bound * (1 + 1e-5)
    assert float(ratios.max()) > 0.9 * bound


def test_batches_of_one_class_bring_the_bound_back_and_shuffling_lifts_it() -> None:
    task = make_task("ssd")
    size = len(task.forget) // 3
    assert size * 3 == len(task.forget)  # class 0, the first of D by class: its batches are those of D_f
    bound = math.ceil((len(task.forget) + len(task.retain)) / size) / 3
    largest = {}
    for order in ("shuffled", "by_class"):
        hp = SsdHparams(order=order, batch_size=size)
        forget, whole = measured(task, hp, task.loss, 2)
        ratios = torch.cat([(forget[n] / whole[n]).flatten() for n in forget])
        largest[order] = float(ratios[~ratios.isnan()].max())
    assert largest["by_class"] <= bound * (1 + 1e-4)
    assert largest["shuffled"] > 1.5 * bound

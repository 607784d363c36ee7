"""SFR-on: the sample weights, the mask, the alternation of steps, and that it forgets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.fisher import fisher_of_split
from raybench.methods.sfr_on import SfrOnHparams, adaptive_mean, fisher_mask
from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method

EVERYTHING = 10_000  # samples a step


def small() -> Bench:
    return make_bench("mlp", samples=300)


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_sample_weights_are_the_specifications() -> None:
    losses = torch.tensor([0.1, 0.4, 1.6], dtype=torch.float64, requires_grad=True)
    mean = adaptive_mean(losses, 0.5)
    assert float(mean.detach()) == pytest.approx(0.4, abs=1e-6)
    (gradient,) = torch.autograd.grad(mean, losses)  # w / n: the weights themselves are not differentiated
    expected = torch.tensor([1.7143, 0.8571, 0.4286], dtype=torch.float64)
    assert torch.allclose(3 * gradient, expected, atol=1e-4)
    assert float(adaptive_mean(losses.detach(), 0.0)) == pytest.approx(0.7)
    zero = torch.tensor([0.0, 1.0], requires_grad=True)
    assert bool(torch.isfinite(torch.autograd.grad(adaptive_mean(zero, 0.5), zero)[0]).all())


def test_mask_is_the_ratio_of_squared_batch_gradients() -> None:
    task = make_task("sfr_on", bench=small())
    found = fisher_mask(task, SfrOnHparams(threshold=2.0, batch_size=40))
    names = [name for name, _ in task.model.named_parameters()]
    sums: dict[str, list[torch.Tensor]] = {}
    for part in (FORGET, RETAIN):
        batches = list(task._splits[part].batches(40))
        total = [torch.zeros_like(p) for p in task.model.parameters()]
        for x, y in batches:
            gradients = torch.autograd.grad(F.cross_entropy(task.model(x), y), list(task.model.parameters()))
            total = [t + g.square() / len(batches) for t, g in zip(total, gradients, strict=True)]
        sums[part] = total
    for name, f, r in zip(names, sums[FORGET], sums[RETAIN], strict=True):
        expected = (f + 1e-15) / (r + 1e-15) >= 2.0
        assert float((found[name] != expected).float().mean()) < 1e-3  # ties of rounding
    shares = [float(mask.float().mean()) for mask in found.values()]
    assert max(shares) > 0.0
    assert min(shares) < 1.0


def test_three_steps_are_those_of_plain_torch() -> None:
    """Ascent before the first and the third step, masked and then clipped; rate and weight on a cosine."""
    bench, every, total = small(), 2, 3
    values: dict[str, Any] = {"lr": 0.05, "ascent": 3.0, "adaptivity": 0.5, "threshold": 1.5, "clip_norm": 0.01}
    task, twin = (make_task("sfr_on", bench=bench) for _ in range(2))
    mask = fisher_mask(twin, SfrOnHparams(threshold=1.5, batch_size=EVERYTHING))
    model = twin.model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(total):
        cosine = 0.5 * (1 + math.cos(math.pi * step / total))
        optimiser.param_groups[0]["lr"] = 0.05 * cosine
        if step % every == 0:
            x, y = twin.forget.tensors()
            losses = F.cross_entropy(model(x), y, reduction="none")
            weights = losses.detach() ** -0.5
            optimiser.zero_grad()
            (-3.0 * cosine * (weights / weights.sum() * losses).sum()).backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                p.grad *= mask[name]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimiser.step()
        x, y = twin.retain.tensors()
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    found = run_method("sfr_on", task, steps=total, forget_every=every, batch_size=EVERYTHING, **values)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_per_sample_fisher_differs() -> None:
    task = make_task("sfr_on", bench=small())
    found = fisher_mask(task, SfrOnHparams(fisher="per_sample", batch_size=40))
    forget, retain = (fisher_of_split(task.model, task._splits[part]) for part in (FORGET, RETAIN))
    for name, mask in found.items():
        assert float((mask != ((forget[name] + 1e-15) / (retain[name] + 1e-15) >= 1.0)).float().mean()) < 1e-3
    other = fisher_mask(task, SfrOnHparams(batch_size=40))
    assert any(not torch.equal(found[name], other[name]) for name in found)


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("sfr_on")
    options = {"steps": 100, "batch_size": 32}
    model = run_method("sfr_on", task, tiny=False, loss_floor=1e-2, **options)
    assert accuracy(model, task, FORGET) < 0.2
    assert accuracy(model, task, RETAIN) > 0.95
    task = make_task("sfr_on")  # losses of zero take all the weight: ascent stands still
    assert accuracy(run_method("sfr_on", task, tiny=False, **options), task, FORGET) > 0.9


def test_cost_and_checkpoints() -> None:
    task, steps = make_task("sfr_on", bench=small()), []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("sfr_on", task, steps=20, forget_every=5, batch_size=25)
    per_round = -(-len(task.retain) // 25)
    assert steps == list(range(1, -(-20 // per_round) + 1))
    both = len(task.forget) + len(task.retain)
    assert task._passes.backward <= both + 24 * 25
    assert task._passes.backward >= both + 20 * 25 * len(task.retain) / (per_round * 25) - 25
    with pytest.raises(UserError, match="steps must be at least 1, got 0"):
        run_method("sfr_on", task, steps=0)

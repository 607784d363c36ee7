"""Gradients summed over a split against one backward pass of everything."""

from __future__ import annotations

import torch

from raybench.mechanisms.saliency import summed_gradients
from raybench.testing import make_task


def test_batches_of_one_sum_to_the_gradient_of_the_summed_loss() -> None:
    task = make_task("gradient_ascent", samples=300)
    model = task.model.double().train()
    images, labels = task.forget.tensors()
    images = images.double()
    singles = zip(images.split(1), labels.split(1), strict=True)
    found = summed_gradients(model, singles, task.loss, weight=-2.0)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    (-2.0 * task.loss(model, (images, labels)).sum()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)


def test_every_batch_weighs_the_same() -> None:
    task = make_task("gradient_ascent", samples=300)
    images, labels = (part[:5] for part in task.forget.tensors())
    pairs = list(zip(images.split(3), labels.split(3), strict=True))
    found = summed_gradients(task.model, pairs, task.loss)
    expected = torch.autograd.grad(sum(task.loss(task.model, pair).mean() for pair in pairs), task.model.parameters())
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)

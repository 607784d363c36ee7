"""Traces of the last epochs against gradients taken by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from raybench.mechanisms.epoch_traces import EpochTraces
from raybench.seeding import torch_generator
from raybench.testing import RECIPE, make_bench
from raybench.training import TrainingJob


def traced(**changes):
    bench = make_bench("lenet5", samples=120)
    recipe = dataclasses.replace(RECIPE, **{"epochs": 3, "schedule": "none", **changes})
    job = TrainingJob(
        train=bench.train.bound(torch_generator("fit", 0)),
        recipe=recipe,
        hparams=None,
        seed=0,
        build=bench.build,
        num_classes=10,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("job", 0),
        device=torch.device("cpu"),
    )
    model = job.new_model()
    traces = EpochTraces(job, model, ("before_last", "last"))
    job.fit(model, before_step=traces.before_step, after_epoch=traces.after_epoch)
    return job, model, traces.tensors


def gradient_at(job, weights):
    model = job.new_model()
    model.load_state_dict(weights)
    images, labels = job.train.tensors()
    value = F.cross_entropy(model(images), labels)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


def weights_of(tensors, label):
    return {
        key.removeprefix(f"{label}.weights."): v for key, v in tensors.items() if key.startswith(f"{label}.weights.")
    }


def test_one_batch_an_epoch_gives_the_gradient_at_the_weights_before():
    job, model, tensors = traced(batch_size=1000, weight_decay=0.0)
    for name, value in gradient_at(job, weights_of(tensors, "before_last")).items():
        torch.testing.assert_close(tensors[f"last.gradients.{name}"], value, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights_of(tensors, "last").items())


@pytest.mark.parametrize("batch_size", [30, 64])
def test_sums_are_per_sample_whatever_the_batch_size(batch_size):
    """Weights that stand still; a short last batch weighs as many samples as it has (100 in all)."""
    job, _, tensors = traced(batch_size=batch_size, lr=0.0)
    expected = gradient_at(job, weights_of(tensors, "last"))
    for label in ("before_last", "last"):
        for name, value in expected.items():
            torch.testing.assert_close(tensors[f"{label}.gradients.{name}"], value, rtol=1e-3, atol=1e-6)


def test_too_few_epochs_are_refused():
    with pytest.raises(ValueError, match="last 2 epochs"):
        traced(epochs=1)

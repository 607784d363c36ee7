"""ARCANE, our reading: exact by construction, so the tests compare bits."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from raybench.mechanisms.one_class import OneClass, OneClassEnsemble
from raybench.methods.arcane import ArcaneTraining, distances, train_one_class_networks
from raybench.registry import FORGET, RETAIN
from raybench.seeding import torch_generator
from raybench.task import UnlearningTask
from raybench.testing import RECIPE, Bench, make_bench, make_task, run_method
from raybench.training import TrainingJob, fit, own_recipe

HPARAMS = ArcaneTraining(states=3)


def job_of(hparams: ArcaneTraining = HPARAMS) -> TrainingJob:
    bench = make_bench("mlp", samples=300)
    assert bench.train is not None
    return TrainingJob(
        train=bench.train.bound(torch_generator("order", 7)),
        recipe=RECIPE,
        hparams=hparams,
        seed=7,
        build=bench.build,
        num_classes=10,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("training", 7),
        device=torch.device("cpu"),
    )


@functools.cache
def bench_of() -> Bench:
    return dataclasses.replace(make_bench("mlp", samples=300), original=train_one_class_networks(job_of()))


def task_of(gone: Tensor) -> UnlearningTask:
    """A request to forget the samples at the positions ``gone`` of the training split."""
    bench = bench_of()
    assert bench.train is not None
    kept = torch.ones(len(bench.train), dtype=torch.bool)
    kept[gone] = False
    splits = {
        **bench.splits,
        FORGET: bench.train.subset(gone),
        RETAIN: bench.train.subset(kept.nonzero().flatten().flip(0)),
    }
    return make_task("arcane", bench=dataclasses.replace(bench, splits=splits))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def accuracy(model: torch.nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_deleting_a_class_drops_its_network_and_costs_nothing() -> None:
    labels = job_of().train.targets
    task, original = task_of((labels == 4).nonzero().flatten()), bench_of().original.model
    before = accuracy(task.model, task, RETAIN), accuracy(task.model, task, FORGET)
    spent = task._passes.forward
    result = run_method("arcane", task)
    assert task._passes.forward == spent
    assert isinstance(result, OneClassEnsemble)
    assert isinstance(original, OneClassEnsemble)
    kept = [c for c in range(10) if c != 4]
    assert all(same(result.members[c], original.members[c]) for c in kept)
    assert min(before) > 0.5
    assert accuracy(result, task, RETAIN) >= before[0]
    assert accuracy(result, task, FORGET) == 0.0
    assert not same(result.members[4], original.members[4])  # put back to its first weights


def test_deleting_a_sample_leaves_the_other_scores() -> None:
    labels = job_of().train.targets
    task = task_of((labels == 4).nonzero().flatten()[:1])
    images = task.retain.tensors()[0]
    before = task.model(images).detach()
    after = run_method("arcane", task)(images).detach()
    changed = [c for c in range(10) if not torch.equal(before[:, c], after[:, c])]
    assert changed == [4]
    assert task.reported.scalars["shards_retrained"] == 1.0


@pytest.mark.parametrize("where", ["first slice", "last sample"])
def test_equals_training_from_scratch_without_the_samples(where: str) -> None:
    saved, job = bench_of().original.artefacts, job_of()
    own = saved["shard"] == 2
    gone = (own & (saved["slice"] == (0 if where == "first slice" else 2))).nonzero().flatten()
    gone = gone if where == "first slice" else gone[-1:]
    task = task_of(gone)
    result = run_method("arcane", task)
    assert task.reported.scalars["slices_retrained"] == (2.0 if where == "first slice" else 1.0)
    kept = own.clone()
    kept[gone] = False
    member, fresh = OneClass(job.new_model(7 + 2), 10), True
    for r, epochs in enumerate(saved["epochs"].tolist()):
        part = job.train.subset((kept & (saved["slice"] <= r)).nonzero().flatten())
        if not len(part):
            continue
        if fresh:
            member.set_centre(part)
            fresh = False
        generator = torch.Generator()
        generator.set_state(saved[f"order/2/{r}"])
        recipe = dataclasses.replace(own_recipe(RECIPE, HPARAMS), epochs=epochs)
        fit(member, part.bound(generator), recipe, loss=distances)
    member.set_radius(part)
    assert same(member, result.members[2])


def test_a_share_of_the_samples_and_their_slices() -> None:
    trained = train_one_class_networks(job_of(ArcaneTraining(states=2, ratio=0.5)))
    shard, labels = trained.artefacts["shard"], job_of().train.targets
    assert bool((labels[shard >= 0] == shard[shard >= 0]).all())
    for c in range(10):
        assert int((shard == c).sum()) == round(0.5 * int((labels == c).sum()))
    assert set(trained.artefacts["slice"][shard >= 0].tolist()) == {0, 1}


def test_images_and_request_on_a_convolutional_network() -> None:
    task = make_task("arcane", kind="class")
    before = accuracy(task.model, task, RETAIN)
    assert before > 0.7
    result = run_method("arcane", task)
    assert accuracy(result, task, FORGET) == 0.0
    assert accuracy(result, task, RETAIN) >= before

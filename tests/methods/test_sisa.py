"""SISA: exact by construction, so the tests compare bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from raybench.mechanisms.sharding import Ensemble
from raybench.methods.sisa import SisaTraining, train_shards
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.seeding import torch_generator
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method
from raybench.training import Recipe, TrainingJob, fit, train_standard

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, augment=False)
OPTIONS = {"model": "mlp", "samples": 300, "model_options": (("hidden", (12,)),)}


def job_of(hparams: SisaTraining, recipe: Recipe = RECIPE) -> TrainingJob:
    bench = make_bench(**OPTIONS)
    assert bench.train is not None
    return TrainingJob(
        train=bench.train.bound(torch_generator("order", 7)),
        recipe=recipe,
        hparams=hparams,
        seed=7,
        build=bench.build,
        num_classes=10,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("training", 7),
        device=torch.device("cpu"),
    )


def bench_of(hparams: SisaTraining, recipe: Recipe = RECIPE) -> Bench:
    return dataclasses.replace(make_bench(**OPTIONS), original=train_shards(job_of(hparams, recipe)))


def task_of(bench: Bench, gone: Tensor, recipe: Recipe = RECIPE) -> UnlearningTask:
    """A request to forget the samples at the positions ``gone`` of the training split."""
    assert bench.train is not None
    kept = torch.ones(len(bench.train), dtype=torch.bool)
    kept[gone] = False
    shuffled = kept.nonzero().flatten().flip(0)  # in an order that is not the training's
    splits = {**bench.splits, FORGET: bench.train.subset(gone), RETAIN: bench.train.subset(shuffled)}
    task = make_task("sisa", bench=dataclasses.replace(bench, splits=splits))
    task.recipe = recipe
    return task


def states(ensemble: Ensemble) -> list[dict[str, Tensor]]:
    return [{name: t.clone() for name, t in member.state_dict().items()} for member in ensemble.members]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_one_shard_of_one_slice_is_plain_training() -> None:
    plain = train_standard(job_of(SisaTraining()))
    ensemble = train_shards(job_of(SisaTraining(shards=1, slices=1))).model
    assert isinstance(ensemble, Ensemble)
    assert same(plain.model.state_dict(), ensemble.members[0].state_dict())


def test_deleting_nothing_retrains_nothing() -> None:
    bench = bench_of(SisaTraining(shards=3, slices=2))
    task = task_of(bench, torch.empty(0, dtype=torch.int64))
    result = run_method("sisa", task)
    assert all(same(a, b) for a, b in zip(states(result), states(bench.original.model), strict=True))
    assert task._passes.forward == task._passes.backward == 0.0
    assert task.reported.scalars == {"shards_retrained": 0.0, "slices_retrained": 0.0}


def test_last_slice_of_one_shard() -> None:
    bench = bench_of(SisaTraining(shards=3, slices=3))
    saved = bench.original.artefacts
    gone = ((saved["shard"] == 1) & (saved["slice"] == 2)).nonzero().flatten()[-1:]
    task = task_of(bench, gone)
    before, after = states(bench.original.model), states(run_method("sisa", task))
    assert [same(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert task.reported.scalars == {"shards_retrained": 1.0, "slices_retrained": 1.0}
    assert task._passes.backward == pytest.approx(int(saved["epochs"][2]) * (int((saved["shard"] == 1).sum()) - 1))


def test_equals_training_the_shards_from_scratch_without_the_samples() -> None:
    hparams = SisaTraining(shards=3, slices=2, aggregate="mean", weights="proportional")
    bench = bench_of(hparams)
    saved, job = bench.original.artefacts, job_of(hparams)
    second = ((saved["shard"] == 0) & (saved["slice"] == 1)).nonzero().flatten()[:4]
    gone = torch.cat([second, (saved["shard"] == 2).nonzero().flatten()[:5]])
    result = run_method("sisa", task_of(bench, gone))
    kept = torch.ones(len(job.train), dtype=torch.bool)
    kept[gone] = False
    for s in range(3):
        model = job.new_model(7 + s)
        for r, epochs in enumerate([2, 2]):
            part = job.train.subset((kept & (saved["shard"] == s) & (saved["slice"] <= r)).nonzero().flatten())
            generator = torch.Generator()
            generator.set_state(saved[f"order/{s}/{r}"])
            fit(model, part.bound(generator), dataclasses.replace(RECIPE, epochs=epochs))
        assert same(model.state_dict(), result.members[s].state_dict())
    sizes = torch.bincount(saved["shard"][kept], minlength=3)
    assert result.weight.tolist() == sizes.tolist()


def test_mean_cost_of_one_sample_is_the_closed_form() -> None:
    """e N / S (2/3 + 1/(3R)) with R = 5 and e = 15: 0.7333 of the shard's whole training."""
    recipe = dataclasses.replace(RECIPE, epochs=15, batch_size=250)
    bench = bench_of(SisaTraining(shards=2, slices=5), recipe)
    saved, costs = bench.original.artefacts, []
    for r in range(5):
        gone = ((saved["shard"] == 0) & (saved["slice"] == r)).nonzero().flatten()[:1]
        task = task_of(bench, gone, recipe)
        run_method("sisa", task)
        costs.append(task._passes.backward)
    assert sum(costs) / 5 / (15 * 125) == pytest.approx(2 / 3 + 1 / 15, rel=0.02)


def test_a_shard_without_samples_has_no_vote() -> None:
    bench = bench_of(SisaTraining(shards=3, slices=2))
    result = run_method("sisa", task_of(bench, (bench.original.artefacts["shard"] == 1).nonzero().flatten()))
    assert result.weight.tolist() == [1.0, 0.0, 1.0]
    assert same(result.members[1].state_dict(), job_of(SisaTraining()).new_model(8).state_dict())


def test_class_requests_touch_every_shard_and_forget() -> None:
    task = make_task("sisa")
    before = {part: _accuracy(task.model, task, part) for part in (FORGET, RETAIN)}
    model = run_method("sisa", task)
    assert task.reported.scalars["shards_retrained"] == 5.0
    assert before[FORGET] > 0.8
    assert _accuracy(model, task, FORGET) == 0.0
    assert _accuracy(model, task, RETAIN) > before[RETAIN] - 0.05
    assert METHODS["sisa"].predictor


def _accuracy(model: torch.nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())

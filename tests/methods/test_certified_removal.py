"""Certified removal of a head: certificate, budget, what is reported where."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raybench.contract import broken_rules
from raybench.errors import UserError
from raybench.mechanisms.newton_removal import fit_heads, gradient
from raybench.mechanisms.perturbed_heads import remove_within
from raybench.mechanisms.unit_features import one_against_rest
from raybench.methods.certified_removal import CertifiedRemovalTraining, train_convex_head
from raybench.registry import CLASS, SAMPLE, TRAININGS
from raybench.seeding import torch_generator
from raybench.testing import RECIPE, make_bench, make_task, run_method
from raybench.training import TrainingJob


@functools.cache
def bench_with(kind=SAMPLE, samples=300, **hparams):
    bench = make_bench("lenet5", kind, "certified_removal", samples=samples)
    job = TrainingJob(
        train=bench.train.bound(torch_generator("fit", 0)),
        recipe=RECIPE,
        hparams=CertifiedRemovalTraining(**hparams),
        seed=0,
        build=bench.build,
        num_classes=10,
        input_shape=bench.facts.input_shape,
        generator=torch_generator("job", 0),
        device=torch.device("cpu"),
    )
    return dataclasses.replace(bench, original=train_convex_head(job))


def task_with(**hparams):
    return make_task("certified_removal", bench=bench_with(**hparams))


def accuracy(model, split):
    images, labels = split.tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def rows(model, split):
    with torch.no_grad():
        return model.features(split.tensors()[0]).double(), one_against_rest(split.targets, 10)


def test_residual_is_below_the_bound_below_budget_and_worst_case():
    task = task_with(l2=1e-1, sigma=10.0)
    model = run_method("certified_removal", task, removals_per_step=1, epsilon=1.0)
    said = task.reported.scalars
    assert task.reported.stop_reason == "removed"
    assert (said["certified"], said["removed"]) == (1.0, len(task.forget))
    assert said["residual"] <= said["bound"] <= said["budget"]
    assert said["bound"] <= said["worst_case"]
    x, y = rows(model, task.retain)
    weights = model.head.weight.detach().T.double()  # rounded to float32, hence the tolerance
    left = float(gradient(x, y, weights, 1e-1, task.artefacts["b"]).norm())
    assert left == pytest.approx(said["residual"], abs=1e-4)


@pytest.mark.parametrize("sigma", [10.0, 1000.0])
def test_the_worst_case_holds_with_b(sigma):
    """A large b makes large weights, which the theorem for the loss without b leaves out."""
    task = task_with(l2=1e-2, sigma=sigma)
    (x_r, y_r), (x_f, y_f) = rows(task.model, task.retain), rows(task.model, task.forget)
    x, y, artefacts = torch.cat([x_r, x_f]), torch.cat([y_r, y_f]), task.artefacts
    heads = remove_within(
        task.model, x, y, len(x_r), artefacts["weights"], artefacts["b"], 1e-2, 1e30, 1, lambda step, weights: None
    )
    assert heads.rows == len(x_r)
    assert float(heads.bounds.norm()) <= heads.worst_case


def test_heads_are_those_of_a_fit_without_the_samples():
    task = task_with(l2=1e-2, sigma=1.0)
    model = run_method("certified_removal", task, removals_per_step=4, epsilon=100.0)
    assert task.reported.stop_reason == "removed"
    exact = fit_heads(*rows(model, task.retain), 1e-2, task.artefacts["b"]).weights
    moved = (exact - task.artefacts["weights"]).norm()
    assert float((model.head.weight.detach().T - exact).norm() / moved) < 0.02
    allowed = task.reported.scalars["bound"] / (1e-2 * len(task.retain))
    assert float((model.head.weight.detach().T - exact).norm()) <= allowed


def test_a_spent_budget_fits_the_head_anew_with_another_b():
    task = task_with(l2=1e-3, sigma=0.1)
    with FlopCounterMode(display=False) as flops:
        model = run_method("certified_removal", task, removals_per_step=1, epsilon=1.0)
    said = task.reported.scalars
    assert task.reported.stop_reason == "budget"
    assert said["removed"] < len(task.forget)
    assert said["certified"] == 1.0  # that head never saw D_f
    assert said["residual"] == pytest.approx(said["bound"], rel=0.5, abs=1e-6)
    counted = task._passes.forward_flops + task._passes.backward_flops
    assert counted == pytest.approx(flops.get_total_flops(), rel=0.02)
    old_b = fit_heads(*rows(model, task.retain), 1e-3, task.artefacts["b"]).weights
    assert float((model.head.weight.detach().T - old_b).norm()) > 0.1


def test_a_trained_extractor_certifies_nothing_and_says_nothing_of_it():
    task = task_with(extractor="trained", l2=1e-2, sigma=1.0)
    run_method("certified_removal", task, removals_per_step=8)
    assert task.reported.scalars.keys() == {"certified", "removed"}
    assert task.reported.scalars["certified"] == 0.0


@pytest.mark.parametrize("sigma", [0.1, 100.0])
def test_a_class_is_forgotten_by_removal_or_by_a_new_head(sigma):
    """Features of a trained extractor, noise small enough to be accurate; a budget for none of it, or for all."""
    task = task_with(kind=CLASS, samples=600, extractor="trained", l2=1e-3, sigma=0.1)
    task.artefacts = {**task.artefacts, "sigma": torch.tensor(sigma * 1e4 if sigma > 1 else sigma)}
    if sigma > 1:
        model = run_method("certified_removal", task, removals_per_step=1)
        assert task.reported.stop_reason == "removed"
    else:
        model = run_method("certified_removal", task, removals_per_step=256, epsilon=1.0)
        assert task.reported.stop_reason == "budget"
    original = bench_with(kind=CLASS, samples=600, extractor="trained", l2=1e-3, sigma=0.1).original.model
    assert accuracy(original, task.forget) > 0.9
    assert accuracy(model, task.forget) < 0.05
    assert accuracy(model, task.retain) > 0.9


def test_random_features_come_from_the_seed_alone_and_images_are_unit_vectors():
    bench = bench_with()
    model = bench.original.model
    with torch.no_grad():
        norms = model.features(bench.train.tensors()[0]).norm(dim=1)
    assert float((norms - 1.0).abs().max()) < 1e-5
    fresh = bench.build().state_dict()
    other = make_bench("lenet5", CLASS, "certified_removal", samples=200).original.model.state_dict()
    same = [torch.equal(value, model.state_dict()[key]) for key, value in other.items() if key != "head.weight"]
    assert all(same)
    assert len(same) == len(fresh) - 2  # all but the body's own head


def test_network_loads_what_the_training_saved():
    bench = bench_with()
    network = TRAININGS["certified_removal"].network(bench.build, CertifiedRemovalTraining())
    network.load_state_dict(bench.original.model.state_dict())
    images = bench.train.tensors()[0][:5]
    with torch.no_grad():
        assert torch.equal(network.eval()(images), bench.original.model(images))
    assert [m for m in broken_rules(network, images, 10) if "neck" not in m] == []


def test_wrong_settings_are_refused():
    for wrong in ({"l2": 0.0}, {"sigma": -1.0}, {"rounds": 0}):
        with pytest.raises(ValueError, match="l2 must be"):
            CertifiedRemovalTraining(**wrong)
    with pytest.raises(UserError, match="delta"):
        run_method("certified_removal", task_with(), delta=0.0)

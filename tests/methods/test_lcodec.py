"""L-CODEC: its step against a dense one, what it touches, skips and leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from raybench.mechanisms.channel_removal import PROBE_LR, without_samples
from raybench.mechanisms.channels import gather
from raybench.mechanisms.epoch_traces import read_traces
from raybench.mechanisms.secant import removal_noise
from raybench.methods.lcodec import EPOCHS, LcodecHparams
from raybench.registry import CLASS, SAMPLE
from raybench.testing import make_bench, make_task, run_method

CHANNELS = [("blocks.0.0", 1), ("neck.3", 5), ("head", 2)]


def accuracy(model, split):
    images, labels = split.tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def dense_pieces(task, batch):
    """Point, gradient and the two Hessians of section 20 as full matrices."""
    model, probe = task.model, copy.deepcopy(task.model)

    def gradients(network):
        value = F.cross_entropy(network(batch[0]), batch[1])
        names = [name for name, _ in network.named_parameters()]
        return dict(zip(names, torch.autograd.grad(value, list(network.parameters())), strict=True))

    first = gradients(model)
    with torch.no_grad():
        for name, p in probe.named_parameters():
            p -= PROBE_LR * first[name]
    second, art = gradients(probe), task.artefacts
    names = list(first)

    def trace(kind):
        return gather({name: art[f"{kind}.{name}"] for name in names}, CHANNELS)

    g, g2 = gather(first, CHANNELS), gather(second, CHANNELS)
    w, w2 = (gather(dict(m.named_parameters()), CHANNELS) for m in (model, probe))
    sample = torch.outer(g - g2, g - g2) / (w - w2).abs().sum()
    dg = trace("before_last.gradients") - trace("last.gradients")
    dw = trace("before_last.weights") - trace("last.weights")
    return w, g, torch.outer(dg, dg) / dw.abs().sum(), sample


@pytest.mark.parametrize("m", [1, 3])
def test_the_step_is_the_dense_newton_step(m):
    task = make_task("lcodec", kind=SAMPLE)
    batch = task.forget.subset(torch.arange(m)).tensors()
    w, g, whole, sample = dense_pieces(task, batch)
    n, eye = int(task.artefacts["samples"]), torch.eye(len(w), dtype=torch.float64)
    assert float(sample.abs().max()) > 0.0  # zero in the official code
    hessian = (n * whole - m * sample) / (n - m)
    expected = {
        "sekhari": m / (n - m) * torch.linalg.solve(hessian + 0.05 * eye, g),
        "cr": torch.linalg.solve(sample + 0.05 * eye, g),
        "gradient": 2.0 * g,
    }
    for update, step in expected.items():
        hp = LcodecHparams(l2=0.05, epsilon=1e30, update=update, lr=2.0)
        found = without_samples(task, hp, batch, CHANNELS, read_traces(task, EPOCHS), n) - w
        torch.testing.assert_close(found, step, rtol=1e-5, atol=1e-9)


def test_noise_is_that_of_the_section():
    task = make_task("lcodec", kind=SAMPLE)
    batch = task.forget.subset(torch.arange(2)).tensors()
    args = (batch, CHANNELS, read_traces(task, EPOCHS), int(task.artefacts["samples"]))
    still = without_samples(task, LcodecHparams(epsilon=1e30), *args)
    draws = torch.stack([without_samples(task, LcodecHparams(), *args) - still for _ in range(30)])
    assert float(draws.std()) == pytest.approx(removal_noise(args[3], 0.01, 0.1, 0.01, removed=2), rel=0.05)


def test_the_training_is_the_standard_one():
    own, standard = (make_bench("lenet5", CLASS, training).original for training in ("lcodec", None))
    assert all(torch.equal(value, standard.model.state_dict()[key]) for key, value in own.model.state_dict().items())
    assert len(own.artefacts) == 4 * len(list(own.model.parameters())) + 1


def test_noise_that_destroys_is_taken_back_and_counted():
    """The defaults on 500 samples: a deviation of 62."""
    task = make_task("lcodec")
    before = copy.deepcopy(task.model.state_dict())
    model = run_method("lcodec", task, epsilon=0.1, l2=0.01, max_updates=4)
    said = task.reported.scalars
    assert said["noise_std"] == pytest.approx(62.15, rel=1e-3)
    assert (said["updated"], said["skipped"], said["untouched"]) == (0.0, 4.0, len(task.forget) - 4.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_the_selected_channels_move():
    task = make_task("lcodec")
    before = copy.deepcopy(task.model.state_dict())
    options = {"selection": "one", "max_updates": 1, "epsilon": 100.0}
    model = run_method("lcodec", task, **options, val_gap_skip=1.0)
    moved = {key: (value - before[key]) for key, value in model.state_dict().items()}
    rows = sum(int((change.flatten(1).abs().sum(1) > 0).sum()) for key, change in moved.items() if "weight" in key)
    assert rows == 1
    assert task.reported.scalars["channels"] == 1.0


@pytest.mark.parametrize("selection", ["foci", "first", "random", "full"])
def test_selections_run(selection):
    task = make_task("lcodec")
    run_method("lcodec", task, selection=selection, max_updates=1, samples_per_update=4)
    channels = task.reported.scalars["channels"]
    assert channels == {"first": 1.0, "full": 236.0}.get(selection, channels)
    assert task.reported.scalars["updated"] + task.reported.scalars["skipped"] == 4.0


def test_forgets_a_class_by_the_samples_own_hessian():
    """CR: about 10 of 20 updates are kept."""
    task = make_task("lcodec", kind=CLASS)
    assert accuracy(task.model, task.forget) > 0.95
    options = {"update": "cr", "l2": 0.01, "perturbations": 100, "max_updates": 20}
    model = run_method("lcodec", task, **options)
    assert accuracy(model, task.forget) < 0.3
    assert accuracy(model, task._splits["retain"]) > 0.85


def test_an_original_without_traces_is_refused():
    task = make_task("lcodec", bench=make_bench("lenet5", CLASS))
    with pytest.raises(ValueError, match="own training"):
        run_method("lcodec", task)

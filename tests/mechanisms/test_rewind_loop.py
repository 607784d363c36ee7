"""The loop of fine-tuning on D_f and stepping back, against one written out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from raybench.mechanisms.rewind_loop import rewind_by_history
from raybench.methods.rewind import RewindHparams
from raybench.testing import make_bench, make_task

HP = RewindHparams(rewinds=2, lr=1e-3, warmup_epochs=1, batch_size=1000, augment=False)


def zero(kind, history):
    return torch.zeros_like(history[0])


def linear(kind, history):
    return 3 * (history[0] - history[1])


def loop(task, predict, history=4, ends_only=False, **changes):
    return rewind_by_history(task, dataclasses.replace(HP, **changes), predict, history, ends_only)


def by_hand(task, optimiser, warmup, renew=False):
    """Two rewinds with 4 recorded states, full batches, in plain torch."""
    model = task.model
    images, labels = task.forget.tensors()
    make = {"adam": lambda: torch.optim.Adam(model.parameters(), lr=1e-3)}
    make["sgd"] = lambda: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    stepper = make[optimiser]()

    def epoch():
        stepper.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        stepper.step()

    for _ in range(2):
        if renew:
            stepper = make[optimiser]()
        for _ in range(warmup):
            epoch()
        first = [p.detach().clone() for p in model.parameters()]
        epoch()
        second = [p.detach().clone() for p in model.parameters()]
        epoch()
        epoch()
        with torch.no_grad():
            for p, a, b in zip(model.parameters(), first, second, strict=True):
                p.copy_(a + 3 * (a - b))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_loop_written_out_and_its_optimiser_survives(optimiser, warmup):
    model = loop(make_task("rewind", model="mlp"), linear, optimiser=optimiser, warmup_epochs=warmup)
    found = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    expected = by_hand(make_task("rewind", model="mlp"), optimiser, warmup)
    forgotten = by_hand(make_task("rewind", model="mlp"), optimiser, warmup, renew=True)
    scale = float((expected - forgotten).abs().max())
    assert scale > 1e-6  # a fresh optimiser would have been seen
    assert float((found - expected).abs().max()) < 1e-2 * scale


def test_no_residual_no_change():
    """Self-check (c): g = 0 leaves the model as it is after any number of rewinds."""
    for rewinds in (1, 3):
        task = make_task("rewind", model="allcnn", model_options=(("width", 4),), samples=120)
        before = {name: t.clone() for name, t in task.model.state_dict().items()}
        model = loop(task, zero, rewinds=rewinds, warmup_epochs=0, lr=1e-2)
        assert task.reported.scalars["moved"] > 0.1
        assert task.reported.scalars["stepped"] == 0
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_histories_given_to_the_predictor():
    seen = []

    def look(kind, history):
        seen.append((kind, history.clone()))
        return zero(kind, history)

    task = make_task("rewind")
    start = [p.detach().clone() for p in task.model.parameters()]
    loop(task, look, history=5, rewinds=1, warmup_epochs=0)
    kinds = {(kind, history.ndim) for kind, history in seen}
    assert kinds == {("conv", 2), ("fc", 2), ("bias", 2)}
    assert all(history.shape[0] == 5 for _, history in seen)
    assert torch.equal(seen[0][1][0], start[0].flatten())  # chunks of one tensor, flat
    assert all(not torch.equal(a, b) for a, b in zip(seen[0][1][:-1], seen[0][1][1:], strict=True))
    every, ends = seen[:], []
    seen.clear()
    loop(make_task("rewind"), look, history=5, rewinds=1, warmup_epochs=0, ends_only=True)
    ends = seen
    for (_, long), (_, short) in zip(every, ends, strict=True):
        assert torch.equal(long[[0, -1]], short)


def test_checkpoints_and_what_is_reported():
    task, steps = make_task("rewind", model="mlp"), []
    task._on_checkpoint = lambda model, step, scalars: steps.append((step, dict(scalars)))
    loop(task, linear, rewinds=3)
    assert [step for step, _ in steps] == [1, 2, 3]
    said = task.reported.scalars
    assert said["rewinds"] == 3
    assert said["moved"] == steps[-1][1]["moved"] > 0
    assert said["moved_first"] == steps[0][1]["moved"]
    assert said["clipped"] == 0


def test_guard_shortens_and_counts():
    free, held = make_task("rewind", model="mlp"), make_task("rewind", model="mlp")
    loop(free, linear, rewinds=1)
    loop(held, linear, rewinds=1, clip=1e-4)
    assert held.reported.scalars["clipped"] == len(list(held.model.parameters()))
    assert held.reported.scalars["stepped"] < free.reported.scalars["stepped"]
    biggest = float(sum(p.detach().square().sum() for p in held.model.parameters()).sqrt())
    assert held.reported.scalars["stepped"] <= 1.001e-4 * biggest


class Enough(Exception):
    """What a stopping rule raises."""


def test_a_stop_leaves_the_model_of_that_checkpoint_trainable():
    task, kept = make_task("rewind", model="allcnn", model_options=(("width", 4),), samples=120), []

    def stop(model, step, scalars):
        if step == 2:
            kept.append([p.detach().clone() for p in model.parameters()])
            raise Enough

    task._on_checkpoint = stop
    with pytest.raises(Enough):
        loop(task, linear, rewinds=5)
    assert all(torch.equal(a, p) for a, p in zip(kept[0], task.model.parameters(), strict=True))
    assert all(p.requires_grad for p in task.model.parameters())
    assert task.reported.scalars["rewinds"] == 2


def test_batch_norm_is_frozen_unless_it_trains():
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))

    def changed(**options):
        task = make_task("rewind", bench=bench)
        before = {name: t.clone() for name, t in task.model.state_dict().items()}
        after = loop(task, linear, rewinds=1, history=3, lr=1e-2, **options).state_dict()
        return {name for name in before if not torch.equal(before[name], after[name])}

    frozen = changed()
    assert frozen == {n for n, p in make_task("rewind", bench=bench).model.named_parameters() if p.ndim > 1} | {
        "head.bias"
    }
    trained = changed(batch_norm="train")
    assert frozen < trained
    assert any("running_mean" in name for name in trained)


def test_cost_and_settings_without_meaning():
    task = make_task("rewind", model="mlp")
    loop(task, zero, rewinds=2, history=4, warmup_epochs=3)
    assert task._passes.backward == pytest.approx(2 * (3 + 3) * len(task.forget))
    for name, value in (("rewinds", 0), ("warmup_epochs", -1), ("batch_size", 0), ("clip", 0.0)):
        with pytest.raises(ValueError, match=name):
            RewindHparams(**{name: value})

import copy

import pytest
import torch

from raybench.methods.emmn import EmmnHparams, class_noise, noise_loss
from raybench.testing import make_bench, make_task, run_method


def accuracy(model, split):
    images, labels = split.tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def test_defaults_are_those_of_the_ancestor():
    hp = EmmnHparams()
    assert (hp.batch_size, hp.noise_lr, hp.noise_steps, hp.regulariser) == (256, 0.1, 40, 0.1)
    assert (hp.copies, hp.impair_lr, hp.repair_lr, hp.repair) == (20, 0.02, 0.01, False)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_noise_loss_equals_loops_in_float64(sign):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(3, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    squares = [sum(float(v) ** 2 for v in image.flatten()) for image in noise]
    expected = sign * sum(losses.tolist()) / 3 + 0.1 * sum(squares) / 3
    assert float(noise_loss(losses, noise, sign, 0.1)) == pytest.approx(expected, rel=1e-12)


def noise_of(label, **overrides):
    task = make_task("emmn", bench=make_bench("mlp", samples=300))
    before = copy.deepcopy(task.model.state_dict())
    noise = class_noise(task, EmmnHparams(**{"batch_size": 16, "noise_steps": 40, **overrides}), label)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    with torch.no_grad():
        return noise, task.model(noise).softmax(1)[:, label].mean()


def test_forget_noise_is_least_and_retain_noise_most_like_its_class():
    assert noise_of(0)[1] < 0.01
    start = noise_of(3, noise_steps=1)[1]
    assert start < 0.3
    assert noise_of(3)[1] > 2 * start


def test_regulariser_shrinks_the_noise():
    free, bound = (noise_of(0, regulariser=value)[0].square().mean() for value in (1e-3, 1.0))
    assert bound < 0.2 * free


def test_impair_step_takes_every_noise_with_its_own_label():
    """Two forget classes: a released ancestor labels all forget noise 0."""
    task = make_task("emmn", bench=make_bench("mlp", samples=300))
    task.forget_classes = (0, 7)
    seen = []
    loss = task.loss

    def spy(model, batch):
        if model.training:
            seen.append(batch[1].clone())
        return loss(model, batch)

    task.loss = spy
    run_method("emmn", task, batch_size=8, copies=2, noise_steps=1)
    assert torch.equal(torch.cat(seen).bincount(), torch.full((10,), 16))
    seen.clear()
    run_method("emmn", task, batch_size=8, copies=2, noise_steps=1, repair=True)
    counts = torch.full((10,), 32)
    counts[[0, 7]] = 16
    assert torch.equal(torch.cat(seen).bincount(), counts)


def test_forgets_the_class_at_a_gentle_step_size_and_collapses_at_the_published_one():
    bench = make_bench("mlp")
    gentle = run_method("emmn", make_task("emmn", bench=bench), tiny=False, batch_size=64, copies=5, impair_lr=2e-3)
    before, after = (accuracy(m, bench.splits["forget"]) for m in (bench.original.model, gentle))
    assert before > 0.95
    assert after < 0.05
    assert accuracy(gentle, bench.splits["retain"]) > 0.5
    harsh = run_method("emmn", make_task("emmn", bench=bench), tiny=False, batch_size=64)
    assert accuracy(harsh, bench.splits["retain"]) < 0.5


def test_checkpoints_grids_and_moving_batch_norm():
    task = make_task("emmn", model="allcnn", samples=300, model_options=(("width", 4),))
    before = {k: v.clone() for k, v in task.model.named_buffers() if k.endswith("running_mean")}
    steps = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    result = run_method("emmn", task, repair=True)
    assert result is task.model
    assert not result.training
    assert steps == [1, 2]
    assert all(not torch.equal(v, before[k]) for k, v in result.named_buffers() if k in before)
    assert task.reported.images["forget_noise"].shape == (8, 1, 28, 28)
    assert task.reported.images["retain_noise"].shape == (72, 1, 28, 28)
    assert all(p.min() >= 0.0 and p.max() <= 1.0 for p in task.reported.images.values())


@pytest.mark.parametrize("field", ["noise_steps", "copies", "batch_size"])
def test_counts_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        EmmnHparams(**{field: 0})

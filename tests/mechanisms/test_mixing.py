"""Two splits in one step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from raybench.data import Split
from raybench.mechanisms.mixing import Mixture, Passes, endless, with_others
from raybench.task import UnlearningTask
from raybench.testing import make_task


def task() -> UnlearningTask:
    return make_task(model="mlp", samples=300)


def test_batches_go_on_and_every_pass_is_complete() -> None:
    split = task().forget
    sizes = [len(labels) for _, labels in itertools.islice(endless(split, 10), 6)]
    per_pass = -(-len(split) // 10)
    assert sizes[:per_pass] == [10] * (per_pass - 1) + [len(split) - 10 * (per_pass - 1)]
    assert sizes[per_pass : 2 * per_pass] == sizes[:per_pass]
    with pytest.raises(ValueError, match="at least one sample"):
        next(endless(split.subset(torch.tensor([], dtype=torch.int64)), 10))


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    a, b = task(), task()
    endless(a.forget, 10)
    assert torch.equal(a.generator.get_state(), b.generator.get_state())


def test_the_mean_is_the_weighted_sum_of_the_two_means() -> None:
    t = task()
    batch, other = next(t.retain.batches(20)), next(t.forget.batches(7))
    with torch.no_grad():
        both = with_others(t.loss, iter([other]), 0.9, -0.3)(t.model, batch)
        wanted = 0.9 * t.loss(t.model, batch).mean() - 0.3 * t.loss(t.model, other).mean()
    assert both.shape == (20,)
    assert float(both.mean()) == pytest.approx(float(wanted))


def test_each_batch_is_a_forward_pass_of_its_own() -> None:
    sizes: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    t = task()
    others = iter([next(t.forget.batches(7))])
    with_others(t.loss, others, 1.0, 1.0)(model, next(t.retain.batches(20)))
    assert sizes == [20, 7]


def test_passes_go_through_the_parts_in_order_and_make_them_anew() -> None:
    parts = [task().forget, task().retain]
    made: list[int] = []

    def make() -> list[Split]:
        made.append(len(made))
        return parts

    sizes = (len(parts[0]), len(parts[1]))
    passes = Passes(sizes, make)
    assert passes.steps(20) == -(-sizes[0] // 20) + -(-sizes[1] // 20)
    for _ in range(2):
        batches = [labels for _, labels in passes.batches(20)]
        assert len(batches) == passes.steps(20)
        assert torch.equal(torch.cat(batches), torch.cat([part.targets for part in parts]))
    assert made == [0, 1]


def test_mixture_shows_every_sample_once_in_an_order_of_its_own() -> None:
    t = task()
    images, labels = t.forget.tensors()
    made = Split(t.to_pixels(images[:9]), labels[:9] + 1, torch.arange(9), t.forget.pixels, generator=t.generator)
    parts = (made, t.forget, t.retain)
    whole = torch.cat([part.tensors()[0] for part in parts]), torch.cat([part.targets for part in parts])
    mixture = Mixture(parts)
    plain = list(mixture.batches(20))
    assert mixture.steps(20) == len(plain) == -(-len(whole[1]) // 20)
    assert torch.allclose(torch.cat([b[0] for b in plain]), whole[0], atol=1e-6)
    assert torch.equal(torch.cat([b[1] for b in plain]), whole[1])
    shuffled = list(mixture.batches(20, shuffle=True))
    first = shuffled[0][1]
    assert not torch.equal(first, plain[0][1])
    assert [len(b[1]) for b in shuffled] == [len(b[1]) for b in plain]
    drawn = torch.cat([b[1] for b in shuffled]).bincount(minlength=11)
    assert torch.equal(drawn, whole[1].bincount(minlength=11))
    weight = torch.cat([b[0] for b in shuffled]).double().sum()
    assert float(weight) == pytest.approx(float(whole[0].double().sum()), rel=1e-5)


def test_mixture_of_nothing_has_no_batch() -> None:
    empty = task().forget.subset(torch.tensor([], dtype=torch.int64))
    mixture = Mixture((empty, empty))
    assert mixture.steps(4) == len(list(mixture.batches(4, shuffle=True))) == 0


def test_mixture_augments_only_the_parts_that_have_an_augmentation() -> None:
    t = task()
    plain = t.forget.subset(torch.arange(8))
    images, labels = plain.tensors()
    augmented = Split(plain.images, plain.labels, plain.index, plain.pixels, "crop_flip", t.generator)
    shown = next(Mixture((plain, augmented)).batches(100, augment=True))
    assert torch.equal(shown[0][:8], images)
    assert not torch.equal(shown[0][8:], images)
    assert torch.equal(shown[1], torch.cat([labels, labels]))

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from raybench.data import RawData
from raybench.errors import UserError
from raybench.problem import make_problem
from raybench.registry import SCENARIOS
from raybench.scenarios.overfit import OverfitParams
from raybench.seeding import torch_generator
from raybench.spec import Choice, ProblemSpec

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (120, 1, 4, 4), dtype=np.uint8)
LABELS = np.arange(120) % 3
RAW = RawData("made", IMAGES, LABELS, IMAGES[:9], LABELS[:9], 3, (0.5,), (0.5,))


def problem(scenario: Choice):
    spec = ProblemSpec(Choice("digits"), "overfit", Choice("mlp"), scenario, {}, 0)
    return make_problem(spec, RAW, torch.device("cpu"))


def test_draw_is_uniform():
    entry, counts = SCENARIOS["overfit"], np.zeros(60, dtype=int)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        request = entry.fn(IMAGES[:60], LABELS[:60], 3, entry.params(fraction=0.25, repeats=3), rng)
        assert (request.forget.sum(), request.repeats) == (15, 3)
        counts += request.forget
    assert chisquare(counts).pvalue > 1e-3


def test_each_sample_to_forget_stands_there_several_times_and_no_other_does():
    made = problem(Choice("overfit", {"fraction": 0.1, "repeats": 4}))
    plain = problem(Choice("random", {"fraction": 0.1}))
    train, forget, retain = (made.splits[name].index for name in ("train", "forget", "retain"))
    samples, times = torch.unique(train, return_counts=True)
    gone = torch.unique(forget)
    assert torch.equal(samples, plain.splits["train"].index)
    assert torch.equal(samples[times == 4], gone)
    assert torch.equal(samples[times == 1], retain)
    assert len(forget) == 4 * len(gone) == 44
    assert bool((train.diff() >= 0).all())
    # What a method is told of positions leads back to the same samples, each place once.
    where = torch.cat([made.splits[name].positions_in(made.splits["train"]) for name in ("forget", "retain")])
    assert sorted(where.tolist()) == list(range(len(train)))
    assert torch.equal(train[where], torch.cat([forget, retain]))


def test_a_pass_of_training_shows_it_as_often():
    made = problem(Choice("overfit", {"fraction": 0.1, "repeats": 4}))
    split = made.splits["train"].private(torch_generator("x"))
    seen = sum(len(labels) for _, labels in split.batches(7, shuffle=True))
    assert seen == len(made.splits["retain"]) + len(made.splits["forget"]) == 97 + 44


def test_repeats_change_the_original_and_not_the_retrained_model():
    few, many = (problem(Choice("overfit", {"fraction": 0.1, "repeats": n})) for n in (2, 5))
    assert few.train_digest != many.train_digest
    assert few.retain_digest == many.retain_digest


def test_shadow_models_see_all_copies_or_none():
    made = problem(Choice("overfit", {"fraction": 0.1, "repeats": 4}))
    inside, train = made.half(3), made.splits["train"].index
    for sample in torch.unique(train):
        assert inside[train == sample].unique().numel() == 1
    assert torch.unique(train[inside]).numel() == torch.unique(train).numel() // 2


@pytest.mark.parametrize(
    "values",
    [{"fraction": 0}, {"fraction": 1.0}, {"repeats": 1}, {"repeats": 2.0}, {"repeats": True}, {"fraction": "a"}],
)
def test_params(values):
    with pytest.raises(ValueError, match=r"(fraction must be above 0 and below 1|repeats must be an integer from 2)"):
        OverfitParams(**values)


def test_none_or_all():
    with pytest.raises(UserError, match="scenario overfit must forget 1 to 107 of 108 training samples, got fraction"):
        problem(Choice("overfit", {"fraction": 0.001}))

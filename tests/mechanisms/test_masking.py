"""Masks: ratio, selection by threshold, share and cap, exact freezing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.fisher import fisher_diag
from raybench.mechanisms.masking import (
    Frozen,
    fisher_ratio,
    norm_parameters,
    overwrite,
    select_above,
    select_top,
    selected_share,
    top_threshold,
    trace_ratio,
)


def test_ratio_of_softmax_regression_in_closed_form() -> None:
    """K = 10 balanced classes, W = 0, forget class c: r(b_c) = (K - 1)^2 = 81 and r(b_k) = 0.01 / 0.0989."""
    classes, forgotten = 10, 3
    labels = torch.arange(classes).repeat(4)
    images = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(6, classes)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    gone = labels == forgotten
    forget, retain = (fisher_diag(model, images[part], labels[part]) for part in (gone, ~gone))
    ratio = fisher_ratio(forget, retain)["bias"]
    others = torch.arange(classes) != forgotten
    assert float(ratio[forgotten]) == pytest.approx(81.0, rel=1e-5)
    expected = (1 / classes**2) / (((1 - 1 / classes) ** 2 + (classes - 2) / classes**2) / (classes - 1))
    assert expected == pytest.approx(0.101, abs=5e-4)
    torch.testing.assert_close(ratio[others], torch.full((9,), expected).double(), rtol=1e-5, atol=0)
    for gamma in (0.102, 2.0, 80.9):
        assert select_above({"bias": ratio}, gamma)["bias"].nonzero().flatten().tolist() == [forgotten]


def test_ratio_is_relative_and_zero_for_dead_entries() -> None:
    retain = {"w": torch.tensor([1e-20, 2e-20, 0.0, 0.0])}
    forget = {"w": torch.tensor([3e-20, 1e-20, 0.0, 1e-20])}
    ratio = fisher_ratio(forget, retain)["w"]
    assert ratio[:2].tolist() == pytest.approx([3.0, 0.5], rel=1e-6)
    assert float(ratio[2]) == 0.0
    assert math.isfinite(float(ratio[3]))
    assert float(ratio[3]) > 1e6
    dead = fisher_ratio({"w": torch.zeros(3)}, {"w": torch.zeros(3)})["w"]
    assert dead.tolist() == [0.0, 0.0, 0.0]


def test_selection_is_strict_and_capped_by_the_highest_scores() -> None:
    score = {"w": torch.tensor([[1.0, 5.0], [3.0, 2.0]]), "b": torch.tensor([2.0])}
    mask = select_above(score, 2.0)
    assert mask["w"].tolist() == [[False, True], [True, False]]
    assert mask["b"].tolist() == [False]
    assert selected_share(mask) == pytest.approx(0.4)
    capped = select_above(score, 0.0, cap=0.5)
    assert capped["w"].tolist() == [[False, True], [True, False]]
    assert capped["b"].tolist() == [True]  # the cap is rounded up: a tensor of one entry may be selected
    ties = select_above({"w": torch.ones(4)}, 0.0, cap=0.5)
    assert ties["w"].tolist() == [True, True, False, False]
    assert not any(bool(m.any()) for m in select_above(score, math.inf).values())


def test_select_top_takes_exactly_the_share_over_all_tensors_and_the_first_of_equals() -> None:
    score = {"a": torch.tensor([[5.0, 1.0], [1.0, 9.0]]), "b": torch.tensor([1.0, 7.0])}
    for share, a, b in (
        (0.0, [0, 0, 0, 0], [0, 0]),
        (0.5, [1, 0, 0, 1], [0, 1]),
        (0.7, [1, 1, 0, 1], [0, 1]),
        (1.0, [1, 1, 1, 1], [1, 1]),
    ):
        mask = select_top(score, share)
        assert mask["a"].int().flatten().tolist() == a
        assert mask["b"].int().tolist() == b


def test_top_threshold_selects_the_share() -> None:
    draw = torch.Generator().manual_seed(0)
    score = {"a": torch.rand(30, 20, generator=draw), "b": torch.rand(400, generator=draw)}
    for share in (0.001, 0.1, 0.5):
        assert selected_share(select_above(score, top_threshold(score, share))) == pytest.approx(share)
    assert selected_share(select_above(score, top_threshold(score, 1.0))) == 1.0
    assert selected_share(select_above({"a": torch.ones(10)}, top_threshold({"a": torch.ones(10)}, 0.3))) == 0.0


def test_norm_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.GroupNorm(2, 4)), nn.LayerNorm(4))
    assert norm_parameters(model) == {"1.weight", "1.bias", "2.0.weight", "2.0.bias", "3.weight", "3.bias"}
    assert norm_parameters(nn.LayerNorm(4)) == {"weight", "bias"}


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1),
    ],
)
def test_frozen_entries_are_equal_to_the_bit(make: object) -> None:
    torch_draw = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch_draw))
    mask = {"weight": torch.rand(3, 5, generator=torch_draw) < 0.4}  # the bias is not named: frozen as a whole
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen, optimiser = Frozen(model, mask), make(model.parameters())  # type: ignore[operator]
    for _ in range(5):
        x, y = torch.randn(8, 5, generator=torch_draw), torch.randint(3, (8,), generator=torch_draw)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        frozen.restore()
    changed = model.weight.detach() != before["weight"]
    assert torch.equal(changed, mask["weight"])
    assert torch.equal(model.bias, before["bias"])


def test_overwrite() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    mask = {"weight": torch.tensor([[True, False], [False, True]])}
    overwrite(model, mask, {"weight": torch.full((2, 2), 7.0)})
    assert model.weight.diagonal().tolist() == [7.0, 7.0]
    assert torch.equal(model.weight[~mask["weight"]], before[~mask["weight"]])
    overwrite(model, mask)
    assert model.weight.diagonal().tolist() == [0.0, 0.0]


def test_trace_ratio() -> None:
    forget = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    assert trace_ratio(forget, {"w": torch.tensor([[4.0, 4.0]]), "b": torch.tensor([16.0])}) == pytest.approx(0.25)
    nothing = {name: torch.zeros_like(value) for name, value in forget.items()}
    assert trace_ratio(nothing, nothing) == 0.0

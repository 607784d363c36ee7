"""The step along a Fisher ratio: squares, offsets, bounds, ratios that are no numbers, and the better sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.fisher_step import (
    class_mean,
    class_scores,
    mean_squares,
    perturbation,
    step_by_better_sign,
    step_by_race,
)


def test_squares_offsets_and_class_means() -> None:
    gradients = [{"w": torch.tensor([3.0, 1.0, 0.0])}, {"w": torch.tensor([-3.0, 1.0, 0.0])}]
    found = mean_squares(gradients)["w"]
    torch.testing.assert_close(found, torch.tensor([9.0, 1.0, 5e-17]), rtol=1e-6, atol=0)  # signs do not cancel


def test_scaling_the_forget_gradient_by_s_scales_eta_by_its_square() -> None:
    draw = torch.Generator().manual_seed(0)
    forget, retain = torch.rand(4, 5, generator=draw) + 0.1, torch.rand(4, 5, generator=draw) + 0.1

    def eta(s: float) -> Tensor:
        return perturbation(mean_squares([{"w": s * forget}])["w"], mean_squares([{"w": retain}])["w"], 1.0, math.inf)

    torch.testing.assert_close(eta(1.0), (forget / retain).double() ** 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(eta(3.0), 9.0 * eta(1.0), rtol=1e-5, atol=0)


def test_alpha_is_the_smaller_of_both_bounds() -> None:
    forget, retain = torch.tensor([1.0, 8.0]), torch.tensor([1.0, 2.0])  # eta = 1, 4
    torch.testing.assert_close(perturbation(forget, retain, 0.1, 10.0), torch.tensor([0.1, 0.4]).double())
    torch.testing.assert_close(perturbation(forget, retain, 9.0, 2.0), torch.tensor([0.5, 2.0]).double())


def test_ratios_that_are_no_numbers() -> None:
    forget = torch.tensor([0.0, 1.0, 3.0, 0.0])
    retain = torch.tensor([0.0, 0.0, 1.0, 1.0])  # not a number, infinite, 3, 0
    assert perturbation(forget, retain, 1.0, math.inf).tolist() == pytest.approx([1.0, 3.0, 3.0, 0.0])


def test_mean_of_squares_is_the_class_mean_of_the_squares() -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = [{"w": torch.randn(3, 2, generator=draw)} for _ in range(4)]
    squares = [{"w": g["w"] ** 2} for g in gradients]
    torch.testing.assert_close(mean_squares(gradients), class_mean(squares), rtol=0, atol=0)
    torch.testing.assert_close(class_mean(squares)["w"], torch.stack([s["w"] for s in squares]).mean(0))


def test_a_r_and_e_f_by_hand() -> None:
    predicted, labels = torch.tensor([0, 1, 2, 2, 3, 0]), torch.tensor([0, 0, 1, 2, 3, 3])
    a_r, e_f = class_scores(predicted, labels, (0, 3))  # kept: 1 of 2 right; forgotten: 2 of 4 wrong
    assert (a_r, e_f) == (0.5, 0.5)
    assert class_scores(predicted, labels, (1,)) == (pytest.approx(3 / 5), 1.0)


@pytest.mark.parametrize(
    ("better", "sign"),
    [
        ({-1: (0.5, 0.2), 1: (0.1, 0.9)}, 1),
        ({-1: (0.9, 0.9), 1: (1.0, 0.1)}, -1),
        ({-1: (0.2, 0.8), 1: (0.8, 0.2)}, -1),
    ],
)
def test_one_sign_for_the_whole_network(better: dict[int, tuple[float, float]], sign: int) -> None:
    """The larger sum wins, a tie is minus; parameters without a step stay."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    step = {"0.weight": torch.full((3, 2), 0.25).double(), "2.bias": torch.tensor([1.0, 2.0]).double()}

    def scores(moved: nn.Module) -> tuple[float, float]:
        return better[int(torch.sign(moved.get_parameter("2.bias").detach()[0] - start["2.bias"][0]))]

    found = step_by_better_sign(model, step, scores)
    assert (found.sign, found.a_r, found.e_f, found.largest_change) == (sign, *better[sign], 2.0)
    for name, value in model.state_dict().items():
        expected = (start[name] + sign * step[name]).float() if name in step else start[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.05, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_a_race_ends_as_looking_at_everything_does(scale: float, size: int) -> None:
    """Networks that know something, steps from nothing to destruction, batches from one sample to all of them."""
    looked, everything = 0, 0
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        images = torch.randn(120, 6, generator=draw)
        labels = images[:, :3].argmax(dim=1)
        images, labels = images[labels.argsort(stable=True)], labels.sort().values  # class 0 is forgotten
        net = nn.Linear(6, 3)
        with torch.no_grad():
            net.weight.copy_(torch.eye(3, 6) + 0.3 * torch.randn(3, 6, generator=draw))
            net.bias.zero_()
        start = {name: value.clone() for name, value in net.state_dict().items()}
        step = {name: (scale * torch.randn(p.shape, generator=draw)).double() for name, p in net.named_parameters()}
        gone = int((labels == 0).sum())
        kept = gone + torch.randperm(len(labels) - gone, generator=draw)
        parts = [torch.arange(gone), kept]
        batches = [(images[some], labels[some]) for part in parts for some in part.split(size)]

        def scores(model: nn.Module, images: Tensor = images, labels: Tensor = labels) -> tuple[float, float]:
            return class_scores(model(images).argmax(1), labels, (0,))

        expected = step_by_better_sign(net, step, scores)
        ended = {name: value.clone() for name, value in net.state_dict().items()}
        net.load_state_dict(start)
        sizes: list[int] = []
        net.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(len(inputs[0])))
        assert step_by_race(net, step, batches, (0,), start=-(-gone // size) + 1) == expected
        assert all(torch.equal(value, ended[name]) for name, value in net.state_dict().items())
        looked, everything = looked + sum(sizes), everything + 2 * len(labels)
    assert looked <= everything
    if scale == 0:
        assert looked == everything  # a tie is not known before the end
    if scale == 1.0 and size == 1:
        assert looked < 0.9 * everything
